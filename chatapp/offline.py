"""Reading offline: the service worker, told what it must know of this installation, and the page of last resort."""

from __future__ import annotations

import json
from functools import lru_cache

from flask import Flask, Response, render_template, request, url_for

from chatapp.assets import asset_dir, content_hash
from chatapp.house import House
from chatapp.served import Body, minified

WORKER = "js/offline/worker.js"
KEPT = (".js", ".css", ".svg")  # of the static files, what pages need to open


def register(app: Flask, house: House) -> None:
    """Hang the worker into the app, at the root: a worker answers for what lies beside and below it."""
    folder = asset_dir("static")
    static = content_hash(folder)
    version = static + content_hash(asset_dir("templates"))
    source = (folder / WORKER).read_text()
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.suffix in KEPT]

    @lru_cache(maxsize=4)  # there is one prefix; more would be a mistake, not a leak
    def body(script_root: str) -> Body:
        settings = {
            "instance": house.instance,
            "version": version,
            "base": f"{script_root}/",
            "files": [url_for("static", version=static, name=name) for name in names if name != WORKER],
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
