"""What stands in front: the URL prefix, and the proxies whose forwarding headers may be believed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from werkzeug.middleware.proxy_fix import ProxyFix

from chatapp.config import Settings, plain_address
from chatapp.wellformed import PLAIN

WEBSOCKET_SCHEMES = {"wss": "https", "ws": "http"}  # what Traefik says of an upgrade's scheme
MOST_PEERS = 4096  # addresses that are known to be a proxy's, or not


class ProxyMiddleware:
    """WSGI middleware. Remembers the peer, believes declared proxies only, and takes the prefix off."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=0)
        self._settings = settings
        self._is_declared = lru_cache(MOST_PEERS)(self._is_in_a_declared_network)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR", "")
        environ["chatapp.peer"] = peer
        if not self._take_prefix(environ):
            start_response("404 NOT FOUND", [*PLAIN, ("Content-Length", "0")])
            return []
        is_declared = self._is_declared(peer)
        if is_declared:
            _name_scheme_as_http_does(environ)
            _believe_only_addresses(environ)
        app = self._behind_proxy if is_declared else self._app
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    def _is_in_a_declared_network(self, peer: str) -> bool:
        return any(peer in network for network in self._settings.trusted_proxies)

    def _take_prefix(self, environ: dict[str, Any]) -> bool:
        prefix = self._settings.url_prefix
        path = environ.get("PATH_INFO", "")
        if not prefix or path in ("/healthz", "/readyz"):
            return True
        if path != prefix and not path.startswith(prefix + "/"):
            return False
        environ["SCRIPT_NAME"] = prefix
        environ["PATH_INFO"] = path.removeprefix(prefix) or "/"
        return True


def _name_scheme_as_http_does(environ: dict[str, Any]) -> None:
    said = environ.get("HTTP_X_FORWARDED_PROTO", "")
    if "ws" in said.lower():
        names = (name.strip().lower() for name in said.split(","))
        environ["HTTP_X_FORWARDED_PROTO"] = ",".join(WEBSOCKET_SCHEMES.get(name, name) for name in names)


def _believe_only_addresses(environ: dict[str, Any]) -> None:
    """Leave the client's address, which the proxy wrote last, or nothing where it is none: it is logged and counted."""
    said = environ.pop("HTTP_X_FORWARDED_FOR", None)
    address = forwarded_address(said.rpartition(",")[2]) if said else ""
    if address:
        environ["HTTP_X_FORWARDED_FOR"] = address


def forwarded_address(text: str) -> str:
    """An address as proxies write it, also with a port (`[::1]:80`); empty where it is none."""
    text = text.strip().strip('"')
    bare = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+):\d+", text)
    try:
        return str(plain_address(bare[1] or bare[2] if bare else "" if "%" in text else text))
    except ValueError:
        return ""
