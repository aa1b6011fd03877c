"""The log in both forms: each line stands by itself, names its connection, and holds no text, cookie or token."""

import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from lab.http import JSON, Client
from lab.peer import PollingPeer, WebSocketPeer
from lab.processes import wait_for
from lab.server import PASSWORD, Server

from chatapp.logs import JsonFormatter, TextFormatter, access_json, is_json

StartServer = Callable[..., Server]
CANARY = "canary-5e2d"
TOKEN = "a-token-of-the-lab-0123456789"


def lines(server: Server) -> list[dict[str, Any]]:
    """Every line."""
    return [json.loads(line) for line in server.log_text(1_000_000).splitlines()]


def use(server: Server) -> tuple[Client, str]:
    """Somebody signs in, writes over both transports, meets an error of the server, and leaves; the socket's id."""
    me = Client(server.url).sign_in()
    conversation = str(me.create(f"{CANARY} first").json["conversation"])
    with WebSocketPeer(me) as socket:
        name = str(socket.hello.get("connection"))
        assert not socket.send(conversation, f"{CANARY} by socket").refused
    assert me.post_message(conversation, f"{CANARY} by post").status in (200, 201)
    PollingPeer(me).poll()
    me.request("GET", f"/search?q={CANARY}", headers={"Authorization": f"Bearer {TOKEN}"})
    assert me.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200
    with closing(sqlite3.connect(server.data / "chat.db", timeout=10)) as database:
        database.execute("ALTER TABLE messages RENAME COLUMN client_id TO was_client_id")
    assert me.post(f"/c/{conversation}/messages", JSON, client_id=conversation, body=f"{CANARY} lost").status == 500
    assert me.request("GET", f"/c/{conversation}").status == 500
    return me, name


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_text_no_cookie_no_token_is_in_it(start_server: StartServer, form: str) -> None:
    server = start_server(assistant="off", log_format=form, metrics_token=TOKEN, workers=2)
    me, name = use(server)
    wait_for(lambda: name in server.log_text(), 10, "the socket's end has its line")
    wait_for(lambda: server.log_text().count("Traceback") >= 2, 10, "the errors are logged")
    log = server.log_text(1_000_000)
    secrets = [CANARY, TOKEN, PASSWORD, quote(PASSWORD), *me.cookies.values(), me.token]
    for secret in secrets:
        assert secret and secret not in log, secret


def test_as_json_each_line_is_an_object(start_server: StartServer) -> None:
    server = start_server(assistant="off", log_format="json", metrics_token=TOKEN)
    _, name = use(server)
    wait_for(lambda: any(one.get("connection") == name for one in lines(server)), 10, "the socket's end has its line")
    wait_for(lambda: any("traceback" in one for one in lines(server)), 10, "the errors are logged")
    assert any(one["logger"] == "start" and "chatapp serves on" in one["message"] for one in lines(server))
    (end,) = [one for one in lines(server) if one.get("connection") == name]
    assert end["path"] == "/ws" and end["status"] == 1000 and end["out"] > 0 and end["seconds"] < 60
    post = next(one for one in lines(server) if one.get("method") == "POST")
    assert {"time", "level", "logger", "address", "path", "status", "bytes", "ms"} <= post.keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", post["time"])
    error = next(one for one in lines(server) if "traceback" in one)
    assert error["level"] == "error" and "OperationalError" in error["traceback"]


def test_what_others_say_is_json_too(start_server: StartServer) -> None:
    """The arbiter, of a worker that was killed; a request that gunicorn refuses."""
    server = start_server(assistant="off", log_format="json")
    assert server.process is not None
    with socket.create_connection(("127.0.0.1", server.port), 5) as raw:
        raw.sendall(b"NONSENSE\r\n\r\n")
        assert b"400" in raw.recv(1000)
    found = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)

    def arbiter() -> list[str]:
        return [one["message"] for one in lines(server) if one["logger"] == "gunicorn.error"]

    wait_for(lambda: any("SIGKILL" in message for message in arbiter()), 20, "it is told")


def test_the_end_of_a_greenlet_or_a_thread_is_logged_too(tmp_path: Path) -> None:
    script = (
        "from chatapp import server; import gevent, threading; server._log_greenlets();"
        "gevent.spawn(lambda: 1 / 0).join(); threading.Thread(target=lambda: {}['x']).start();"
        "gevent.get_hub().loop.run_callback(lambda: [][1]); gevent.sleep(0.2)"
    )
    environment = os.environ | {"CHATAPP_LOG_FORMAT": "json", "DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    told = [json.loads(line) for line in found.stderr.splitlines()]
    kinds = {one["traceback"].splitlines()[-1].partition(":")[0]: one["message"] for one in told}
    assert kinds == {
        "ZeroDivisionError": "a greenlet failed",
        "KeyError": "a thread failed",
        "IndexError": "a greenlet failed",
    }


def test_an_error_on_a_socket_names_it(start_server: StartServer) -> None:
    server = start_server(assistant="off", log_format="json")
    me = Client(server.url).sign_in()
    conversation = str(me.create("hello").json["conversation"])
    with WebSocketPeer(me) as socket:
        name = socket.hello.get("connection")
        with closing(sqlite3.connect(server.data / "chat.db", timeout=10)) as database:
            database.execute("ALTER TABLE messages RENAME COLUMN client_id TO was_client_id")
        socket.say(type="send", conversation=conversation, client_id=conversation, body=CANARY)
        wait_for(lambda: any("traceback" in one for one in lines(server)), 10, "it is logged")
    error = next(one for one in lines(server) if "traceback" in one)
    assert error["connection"] == name and CANARY not in server.log_text()


def test_the_forms_of_access_lines() -> None:
    line = '127.0.0.1 "GET /c/%22x/messages" 201 187 6ms'
    told = json.loads(access_json(line))
    assert (told["path"], told["status"], told["bytes"], told["ms"]) == ("/c/%22x/messages", 201, 187, 6)
    assert json.loads(access_json('something else "\n'))["message"] == 'something else "\n'
    assert "\n" not in access_json("something\nelse")


def test_the_forms_of_records() -> None:
    record = logging.LogRecord("chatapp.x", logging.ERROR, "x.py", 1, "broke: %s", ('a "b"\nc',), None, "f")
    assert TextFormatter().format(record) == 'broke: a "b"\nc'
    assert json.loads(JsonFormatter().format(record))["message"] == 'broke: a "b"\nc'
    assert "\n" not in JsonFormatter().format(record)
    record.connection = "abc"
    assert TextFormatter().format(record).endswith("[connection abc]")
    assert json.loads(JsonFormatter().format(record))["connection"] == "abc"


def test_auto_asks_for_a_terminal() -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    assert is_json("json", Terminal()) and not is_json("auto", Terminal()) and not is_json("text", Terminal())  # type: ignore[arg-type]
    with open("/dev/null") as file:
        assert is_json("auto", file) and not is_json("text", file)
    assert is_json("auto", sys.stderr) is not sys.stderr.isatty()
