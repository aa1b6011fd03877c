"""What stands in front: the URL prefix, and the proxies whose forwarding headers may be believed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from werkzeug.middleware.proxy_fix import ProxyFix

from chatapp.config import Settings


class InFront:
    """WSGI middleware. Remembers the peer, believes declared proxies only, and takes the prefix off."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._behind_proxy = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_prefix=0)
        self._settings = settings

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR", "")
        environ["chatapp.peer"] = peer
        if not self._take_prefix(environ):
            start_response("404 NOT FOUND", [("Content-Type", "text/plain"), ("Content-Length", "0")])
            return []
        is_declared = any(peer in network for network in self._settings.trusted_proxies)
        app = self._behind_proxy if is_declared else self._app
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

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
