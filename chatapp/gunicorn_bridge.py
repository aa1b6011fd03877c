"""What reaches into gunicorn's inside: whether a connection may leave it, the way out, and the end of its request.

A connection that left while bytes of its request were still to come, and came back later, had these bytes read as the
next request: as another person's, where a proxy shares its connections. So only those leave whose request is all there
is, and none comes back.
"""

from __future__ import annotations

from typing import Any, NoReturn

from gevent import socket


def read_settings_once(worker: Any) -> None:
    """Keep gunicorn's settings as plain attributes: it looks them up forty times a request, a tenth of a poll's cost.

    For a worker, whose settings are those of its start.
    """
    config = worker.cfg
    vars(config).update({name: setting.get() for name, setting in config.settings.items()})


def has_body(environ: dict[str, Any]) -> bool:
    """Whether bytes follow the request's head."""
    return environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ


def is_plain(environ: dict[str, Any]) -> bool:
    """Whether gunicorn is there and the connection is TCP as it came: what gunicorn encrypts is of another type."""
    return type(environ.get("gunicorn.socket")) is socket.socket


def can_leave(environ: dict[str, Any]) -> bool:
    """Whether this request's connection may leave gunicorn: plain, HTTP/1.1, and the request is all there is."""
    is_alone = not has_body(environ) and "HTTP_EXPECT" not in environ and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    return is_alone and is_plain(environ) and _nothing_is_buffered(environ)


def take(environ: dict[str, Any]) -> int:
    """The connection's descriptor, which is the caller's from now on; gunicorn keeps an empty object to close."""
    return int(environ["gunicorn.socket"].detach())


def end_request() -> NoReturn:
    """Tell gunicorn that there is nothing to answer, and no next request."""
    raise StopIteration


def _nothing_is_buffered(environ: dict[str, Any]) -> bool:
    """False also where it cannot be known: another gunicorn, or another server."""
    unreader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    return unreader is not None and not unreader.buf.getvalue()
