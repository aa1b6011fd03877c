"""Reading offline: the service worker, told what it must know of this installation, and the page of last resort."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

from flask import Flask, Response, render_template, request, url_for

from chatapp.assets import asset_dir
from chatapp.parts import Parts
from chatapp.served import WORKER, Body, Files, minified


def register(app: Flask, parts: Parts, files: Files, address: Callable[[str], str]) -> None:
    """Hang the worker into the app, at the root: a worker answers for what lies beside and below it.

    address(name): where a static file is served.
    """
    source = (asset_dir("static") / WORKER).read_text()

    @lru_cache(maxsize=4)  # there is one prefix; more would be a mistake, not a leak
    def body(script_root: str) -> Body:
        settings = {
            "instance": parts.instance,
            "version": files.version,
            "base": f"{script_root}/",
            "files": [address(name) for name in sorted(files.kept())],
            "fallback": url_for("offline"),
        }
        text = f"const SETTINGS = {json.dumps(settings)}\n{minified(source)}"
        return Body(text.encode(), "text/javascript")

    @app.get("/worker.js")
    def worker() -> Response:
        return body(request.script_root).answer()

    @app.get("/offline")
    def offline() -> str:
        return render_template("errors/offline.html")
