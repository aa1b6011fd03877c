"""The table of contents: which rooms there are, and how they are put together."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from functools import cache, partial
from typing import Any

from flask import Flask, Request, Response, jsonify, url_for
from flask.json.provider import DefaultJSONProvider
from flask_babel import Babel, force_locale, get_locale
from flask_wtf.csrf import CSRFProtect, generate_csrf
from werkzeug.routing import MapAdapter

from chatapp import offline, security, wellformed
from chatapp.accounts.auth import JUDGED, Auth, Comers, Cookies, Sessions, secret_key
from chatapp.accounts.quotas import Quotas
from chatapp.admission import Admission
from chatapp.assets import asset_dir
from chatapp.assistant import make_knowledge, make_provider
from chatapp.assistant.runner import Runner
from chatapp.bus import Bus
from chatapp.chat import Chat
from chatapp.config import Settings, load
from chatapp.connection_states import table_json
from chatapp.diagnostics import fault_injection
from chatapp.diagnostics.drills import Drills
from chatapp.parts import Parts
from chatapp.proxies import ProxyMiddleware
from chatapp.served import OWN_SCRIPTS, Files, brought
from chatapp.store import Store
from chatapp.store.migrate import migrate
from chatapp.store.workers import Worker
from chatapp.transports import bodies, handshake, integrity, polling
from chatapp.transports.connections import make_connections
from chatapp.transports.long_poll import Polls
from chatapp.transports.protocol import Renderer
from chatapp.transports.subscriptions import Reader
from chatapp.transports.websocket import Services
from chatapp.views import auth, changes, connection, connection_test, conversations, knowledge


class Json(DefaultJSONProvider):
    """Flask's JSON, for which no text is worse than wrong: what nests too deeply is answered with 400, too."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Read JSON. Raises ValueError."""
        try:
            return super().loads(s, **kwargs)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class App(Flask):
    """Flask, which looks for no route where the door has chosen it already."""

    json_provider_class = Json

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """What finds a request's route."""
        is_found = request is not None and JUDGED in request.environ
        return None if is_found else super().create_url_adapter(request)


def create_app(settings: Settings | None = None) -> Flask:
    """Put the app together: settings, store, chat, transports, assistant, pages. Migrates the databases."""
    settings = settings or load(os.environ)
    migrate(settings.data_dir)
    app = App("chatapp", template_folder=str(asset_dir("templates")), static_folder=None)
    key = secret_key(settings.data_dir)
    instance = hashlib.sha256(key.encode()).hexdigest()[:8]
    app.config.update(_flask_settings(settings, key, instance))
    parts = app.extensions["chatapp"] = _build(app, settings, instance)
    app.session_interface = Sessions()
    cookies = Cookies(app, parts.auth)
    templates = partial(brought, app.jinja_env, table_json())
    files = Files(asset_dir("static"), asset_dir("templates"), templates, settings.static_joined)
    app.wsgi_app = Admission(app.wsgi_app, cookies, files, parts.auth.attempts)  # type: ignore[method-assign]
    Babel(app)
    bodies.register(app)  # before what reads forms
    CSRFProtect(app)
    for view in (auth, changes, conversations, connection, connection_test, knowledge):
        app.register_blueprint(view.bp)
    fault_injection.register(app, parts.drills, parts.auth)  # before what it spoils
    if "websocket" in settings.transports:
        comers = Comers(parts.auth, cookies, parts.bus)
        handshake.register(app, parts.websockets, comers, lambda: parts.drills.is_running)
    security.register(app)
    integrity.register(app)
    _register_plain(app, parts, files)
    offline.register(app, parts, files, partial(_address, files))
    door = polling.PollMiddleware(
        app.wsgi_app,
        parts.polls,
        cookies,
        settings,
        partial(security.answer_headers, is_public_https=app.config["SESSION_COOKIE_SECURE"]),
        lambda: parts.drills.is_running,
    )
    app.wsgi_app = ProxyMiddleware(wellformed.Door(bodies.Door(door, cookies)), settings)  # type: ignore[method-assign]
    return app


def _build(app: Flask, settings: Settings, instance: str) -> Parts:
    """The rooms, each given what it needs of the others."""
    bus = Bus()
    store = Store(app, settings.data_dir, bus, settings.workers, settings.events_kept)
    knowledge = make_knowledge(settings)
    provider = make_provider(settings, knowledge)
    chat = Chat(store, assistant_answers=provider is not None)
    renderer = Renderer(app, f"{settings.url_prefix}/", store.histories.mark)
    reader = Reader(store, chat, renderer)
    store.histories.look_back()
    epoch = store.people.epoch()
    connections = make_connections(settings, store)
    auth, quotas = Auth(store, settings, bus), Quotas()
    drills = Drills(store, bus, connections.sockets, settings.drill_schedule)
    bus.on_broadcast = connections.broadcast
    return Parts(
        settings=settings,
        instance=instance,
        epoch=epoch,
        bus=bus,
        store=store,
        chat=chat,
        auth=auth,
        knowledge=knowledge,
        renderer=renderer,
        reader=reader,
        polls=Polls(reader, bus, connections, epoch, store.histories),
        connections=connections,
        quotas=quotas,
        drills=drills,
        websockets=Services(
            settings, epoch, chat, auth, quotas, reader, bus, store.histories, connections, drills.left_ms
        ),
        runner=None
        if provider is None
        else Runner(store.runs, bus, provider, Worker(settings.data_dir / "workers"), settings.longest_answer),
    )


def _flask_settings(settings: Settings, key: str, instance: str) -> dict[str, Any]:
    return {
        "SECRET_KEY": key,
        "SESSION_COOKIE_NAME": f"chatapp_{instance}",
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": settings.public_url.startswith("https:"),
        "SESSION_COOKIE_PATH": f"{settings.url_prefix}/",
        "SESSION_REFRESH_EACH_REQUEST": False,  # else every poll sets the cookie again
        "PERMANENT_SESSION_LIFETIME": timedelta(days=settings.session_lifetime),
        "WTF_CSRF_TIME_LIMIT": None,  # it lives as long as the session that it is bound to
        "WTF_CSRF_SSL_STRICT": False,  # strict proxies strip Referer
        "MAX_CONTENT_LENGTH": bodies.LONG_BYTES,
        "MAX_FORM_MEMORY_SIZE": bodies.LONG_BYTES,
    }


def _register_plain(app: Flask, parts: Parts, files: Files) -> None:
    """What needs no session: health, static files; and what every template may use."""

    @cache
    def languages() -> list[str]:
        return [str(locale) for locale in app.extensions["babel"].instance.list_translations()]

    @app.get("/static/<version>/<path:name>")
    def static(version: str, name: str) -> Response:
        own, _, asked = version.partition(".")[0].partition("-")  # .1, .2: asked for again (static/js/watchdog)
        language = asked if asked in languages() else languages()[0]  # there may be no translation into it
        with force_locale(language):
            response = files.answer(name, language)
        if own == files.version and asked in ("", language):
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable, no-transform"  # a year
        else:  # a page of another process, or language: what it gets now must not be kept under that name
            response.headers["Cache-Control"] = integrity.UNKEPT
        return response

    @app.get("/healthz")
    def healthz() -> Response:
        return Response("ok\n", content_type="text/plain")

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        trouble = "closing" if parts.connections.is_draining else parts.store.trouble()
        return (jsonify(ready=False, reason=trouble), 503) if trouble else (jsonify(ready=True), 200)

    @app.context_processor
    def words() -> dict[str, Any]:
        sign_in = parts.auth.current()
        return {
            "static": partial(_address, files),
            "sheets": files.sheets,
            "csrf_token": generate_csrf,
            "product": "chatapp",
            "instance": parts.instance,
            "person": sign_in.person if sign_in else None,
            "language": "en",
        }


def _address(files: Files, name: str) -> str:
    """Where a static file is served: an own script in the reader's language, and so all that it imports."""
    language = f"-{get_locale()}" if name.startswith(OWN_SCRIPTS) else ""
    return url_for("static", version=files.version + language, name=name)
