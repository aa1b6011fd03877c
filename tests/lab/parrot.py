"""A server that answers every request with the same bytes, which no proper server would send."""

import contextlib
import socket
import ssl
import struct
import threading
from typing import Self

_RESET = struct.pack("ii", 1, 0)


class Parrot:
    """Answers each head that comes with `answer`; then: close, hold (stay connected and silent) or reset.

    `heads` are the requests as they came. With a context it speaks TLS.
    """

    def __init__(
        self, answer: bytes, then: str = "close", *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self.answer, self.then = answer, then
        self.heads: list[bytes] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port = self._listener.getsockname()[1]
        self._scheme, self._host = "https" if tls else "http", f"[{host}]" if ":" in host else host
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"{self._scheme}://{self.address}"

    @property
    def address(self) -> str:
        """host:port, as of a forward proxy."""
        return f"{self._host}:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # until it is closed
            while True:
                client, _ = self._listener.accept()
                self._open.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            side = self._tls.wrap_socket(client, server_side=True) if self._tls else client
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := side.recv(65536)):
                    return
                head += data
            self.heads.append(head)
            side.sendall(self.answer)
            if self.then == "hold":
                side.recv(1)
            if self.then == "reset":
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            side.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join(5)
