"""A host that allows few open files is said so at the start, and served as far as it goes."""

import re
import socket
import subprocess
import uuid
from contextlib import ExitStack
from pathlib import Path

from lab.http import Client
from lab.peer import WebSocketPeer
from lab.server import Server

FEW = 160


def limited(files: int) -> tuple[str, ...]:
    """What runs a command with so many descriptors, soft and hard."""
    return ("prlimit", f"--nofile={files}:{files}")


def test_too_few_files_stop_the_start_in_a_sentence(tmp_path: Path) -> None:
    server = Server(tmp_path, prefix=limited(40))
    server.data.mkdir()
    found = subprocess.run(server.command(), env=server.environment(), capture_output=True, text=True, timeout=30)
    assert found.returncode == 1
    assert found.stderr.startswith("Error: Only 40 files may be open (ulimit -n)") and found.stderr.count("\n") == 1


def test_few_files_are_said_and_serve_all_the_same(tmp_path: Path) -> None:
    """Also WebSockets, and people beside more strangers than there are descriptors."""
    with Server(tmp_path, prefix=limited(FEW)) as server:
        said = re.search(rf"Only {FEW} files may be open .*: room for (\d+) connections", server.log_text())
        assert said and int(said[1]) > 0
        me = Client(server.url).sign_in()
        conversation = str(uuid.uuid4())
        me.create("hello", conversation)
        with WebSocketPeer(me) as peer, ExitStack() as stack:
            peer.subscribe({conversation: 0})
            for _ in range(FEW):
                stranger = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
                stranger.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert peer.send(conversation, "still here").position > 0
            peer.wait_for_answer(conversation)
        assert me.get("/").status == 200
        assert "Traceback" not in server.log_text()
