"""The application factory: every part, and the order of assembly."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from functools import partial
from typing import Any

from flask import Flask, Request
from flask.json.provider import DefaultJSONProvider
from flask_babel import Babel
from flask_wtf.csrf import CSRFProtect
from werkzeug.routing import MapAdapter

from chatapp.accounts.auth import AUTH_SESSION_KEY, Auth, HandshakeSessionCache, SessionCache, Sessions, secret_key
from chatapp.accounts.quotas import Quotas
from chatapp.assistant import make_knowledge, make_provider
from chatapp.assistant.runner import Runner
from chatapp.bus import Bus
from chatapp.chat import Chat
from chatapp.config import Settings, asset_dir, load
from chatapp.connection_states import table_json
from chatapp.diagnostics.drills import Drills, FaultInjection
from chatapp.middleware import (
    LARGEST_BODY,
    AdmissionMiddleware,
    BodyMiddleware,
    ProxyMiddleware,
    RequestMiddleware,
    answer_headers,
    init_headers,
    limit_body,
)
from chatapp.parts import Parts
from chatapp.staticfiles import StaticFiles, preload_module
from chatapp.store import Store
from chatapp.store.migrate import migrate
from chatapp.store.workers import Worker
from chatapp.transports import handshake
from chatapp.transports.connections import make_connections
from chatapp.transports.integrity import armour_response
from chatapp.transports.long_poll import Polls
from chatapp.transports.polling import PollMiddleware
from chatapp.transports.rendering import Renderer
from chatapp.transports.subscriptions import Reader
from chatapp.transports.websocket import Services
from chatapp.views import auth, changes, connection, connection_check, conversations, errors, knowledge, site


class Json(DefaultJSONProvider):
    """Flask's JSON; too deep a nesting is answered with 400, too."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        try:
            return super().loads(s, **kwargs)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class App(Flask):
    """Flask without a second routing of requests that the middleware has routed."""

    json_provider_class = Json

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return the request's URL adapter; None if it is routed already."""
        is_routed = request is not None and AUTH_SESSION_KEY in request.environ
        return None if is_routed else super().create_url_adapter(request)


def create_app(settings: Settings | None = None) -> Flask:
    """Migrate the databases and assemble the app: store, chat, transports, assistant, views."""
    settings = settings or load(os.environ)
    migrate(settings.data_dir)
    app = App("chatapp", template_folder=str(asset_dir("templates")), static_folder=None)
    key = secret_key(settings.data_dir)
    instance = hashlib.sha256(key.encode()).hexdigest()[:8]
    app.config.update(_flask_settings(settings, key, instance))
    parts = app.extensions["chatapp"] = _make_parts(app, settings, instance)
    app.session_interface = Sessions()
    Babel(app)
    app.before_request(limit_body)  # before anything reads a form
    CSRFProtect(app)
    for view in (auth, changes, connection, connection_check, conversations, errors, knowledge, site):
        app.register_blueprint(view.bp)
    FaultInjection(parts.drills, parts.auth).init_app(app)
    init_headers(app)
    app.after_request(armour_response)
    _add_middleware(app, parts)
    return app


def _add_middleware(app: Flask, parts: Parts) -> None:
    """Wrap the app in its WSGI middleware, from the inside out."""
    settings, sessions = parts.settings, SessionCache(app, parts.auth)
    app.wsgi_app = AdmissionMiddleware(app.wsgi_app, sessions, parts.static, parts.auth.attempts)  # type: ignore[method-assign]
    if "websocket" in settings.transports:
        handshake_sessions = HandshakeSessionCache(parts.auth, sessions, parts.bus)
        handshake.register(app, parts.websockets, handshake_sessions, lambda: parts.drills.is_running)
    headers = partial(answer_headers, is_public_https=app.config["SESSION_COOKIE_SECURE"])
    polls = PollMiddleware(app.wsgi_app, parts.polls, sessions, settings, headers, lambda: parts.drills.is_running)
    app.wsgi_app = ProxyMiddleware(RequestMiddleware(BodyMiddleware(polls, sessions)), settings)  # type: ignore[method-assign]


def _make_parts(app: Flask, settings: Settings, instance: str) -> Parts:
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
    preload = partial(preload_module, app.jinja_env, table_json())
    static = StaticFiles(asset_dir("static"), asset_dir("templates"), preload, settings.static_joined)
    return Parts(
        settings=settings,
        static=static,
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
        "SESSION_REFRESH_EACH_REQUEST": False,  # else every poll would set the cookie
        "PERMANENT_SESSION_LIFETIME": timedelta(days=settings.session_lifetime),
        "WTF_CSRF_TIME_LIMIT": None,  # the token lives as long as its session
        "WTF_CSRF_SSL_STRICT": False,  # strict proxies strip Referer
        "MAX_CONTENT_LENGTH": LARGEST_BODY,
        "MAX_FORM_MEMORY_SIZE": LARGEST_BODY,
    }
