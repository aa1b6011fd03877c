"""The application factory: every part, and the order of assembly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache, partial
from io import BytesIO
from typing import IO, Any

from flask import Flask, Request
from flask.json.provider import DefaultJSONProvider
from flask_babel import Babel
from flask_wtf.csrf import CSRFProtect
from werkzeug.routing import MapAdapter

from chatapp.accounts.administration import Administration, app_url
from chatapp.accounts.auth import AUTH_SESSION_KEY, Auth, Sessions
from chatapp.accounts.keys import instance_name, secret_keys
from chatapp.accounts.limits import Limits
from chatapp.accounts.tickets import Tickets
from chatapp.assistant import Provider, make_knowledge, make_own_files, make_provider
from chatapp.assistant.knowledge import Knowledge
from chatapp.assistant.markdown import GrowingAnswer
from chatapp.assistant.questions import asked_for, asks_for_connection
from chatapp.assistant.runner import Runner
from chatapp.assistant.unanswered import Unanswered
from chatapp.bus import Bus
from chatapp.certificates import trust
from chatapp.chat import Chat
from chatapp.config import Settings, asset_dir, load
from chatapp.connection_states import table_json
from chatapp.diagnostics.bundle import Bundler
from chatapp.diagnostics.drills import Drills, init_faults
from chatapp.diagnostics.mending import Mending
from chatapp.meters import Meters
from chatapp.middleware import (
    LARGEST_BODY,
    AdmissionMiddleware,
    ProxyMiddleware,
    RequestMiddleware,
    answer_headers,
    init_headers,
    limit_body,
)
from chatapp.monitoring.channels import Channels
from chatapp.monitoring.errors import ErrorLog
from chatapp.monitoring.happened import WHAT_HAPPENED, happened_words
from chatapp.monitoring.own import connection_words
from chatapp.monitoring.rollups import Rollups
from chatapp.monitoring.timeline import drill_times
from chatapp.monitoring.watch import AlertWatch, observe
from chatapp.monitoring.worker_rows import WorkerRows
from chatapp.network_memory import network_key
from chatapp.parts import VERSION, Parts
from chatapp.staticfiles import StaticFiles, preload_module
from chatapp.store import Kept, Store, Turn, now_ms
from chatapp.store.migrate import migrate
from chatapp.store.workers import Worker
from chatapp.transports.armour import armour_response
from chatapp.transports.connections import Connections, make_connections
from chatapp.transports.handshake import Upgrades
from chatapp.transports.long_poll import Polls
from chatapp.transports.over_budget import SendMiddleware
from chatapp.transports.polling import PollMiddleware
from chatapp.transports.rendering import Renderer
from chatapp.transports.subscriptions import Reader
from chatapp.transports.visitors import Visitors
from chatapp.transports.websocket import WebSockets
from chatapp.views import (
    account,
    alerts,
    attachments,
    audit,
    auth,
    bundle,
    changes,
    connection,
    connection_check,
    conversations,
    error_groups,
    errors,
    knowledge,
    links,
    members,
    metrics,
    monitor,
    network_test,
    people,
    site,
)

MOST_NETWORKS = 4096  # addresses whose network's key is kept
COOKIE_OUTLIVES_DAYS = 7  # its session: so that a page learns that it has expired, rather than been ended


class Json(DefaultJSONProvider):
    """Flask's JSON; too deep a nesting is answered with 400, too."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        try:
            return super().loads(s, **kwargs)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class InMemoryRequest(Request):
    """A request whose files never lie on the disk: `limit_body` bounds them."""

    def _get_file_stream(self, *_args: Any, **_options: Any) -> IO[bytes]:
        return BytesIO()


class App(Flask):
    """Flask without a second routing of requests that the middleware has routed."""

    json_provider_class = Json
    request_class = InMemoryRequest

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return the request's URL adapter; None if it is routed already."""
        is_routed = request is not None and AUTH_SESSION_KEY in request.environ
        return None if is_routed else super().create_url_adapter(request)


def create_app(settings: Settings | None = None) -> Flask:
    """Migrate the databases and assemble the app: store, chat, transports, assistant, views."""
    settings = settings or load(os.environ)
    migrate(settings.data_dir)
    app = App("chatapp", template_folder=str(asset_dir("templates")), static_folder=None)
    instance = instance_name(settings.data_dir)
    app.config.update(
        _flask_settings(
            settings,
            secret_keys(settings.data_dir, (settings.session_lifetime + COOKIE_OUTLIVES_DAYS) * 86400),
            instance,
        )
    )
    app.session_interface = Sessions()
    parts = app.extensions["chatapp"] = _make_parts(app, settings, instance)
    Babel(app)
    app.before_request(limit_body)  # before anything reads a form
    app.before_request(metrics.hide_metrics)
    app.before_request(people.hide_from_others)  # before the CSRF check, whose answer would reveal a page
    CSRFProtect(app).exempt(network_test.bp)  # its ticket is all that a request can do, and no other site has it
    pages = (
        account,
        attachments,
        audit,
        auth,
        connection,
        connection_check,
        conversations,
        knowledge,
        links,
        members,
        monitor,
    )
    own = (changes, error_groups, errors, metrics, site, network_test, bundle)
    for view in (*pages, alerts, people, *own):
        app.register_blueprint(view.bp)
    init_faults(app, parts.drills, parts.auth)
    init_headers(app)
    app.after_request(armour_response)
    parts.static.init_app(app, instance)
    _add_middleware(app, parts)
    return app


def _add_middleware(app: Flask, parts: Parts) -> None:
    """Wrap the app in its WSGI middleware, from the inside out."""
    settings, sessions = parts.settings, parts.auth.sessions
    app.wsgi_app = AdmissionMiddleware(app.wsgi_app, sessions, parts.static, parts.auth.attempts)  # type: ignore[method-assign]
    if "websocket" in settings.transports:
        visitors = Visitors(parts.tickets, parts.connections, settings, parts.mending.prove)
        Upgrades(parts, sessions, lambda: parts.drills.is_running, visitors).init_app(app)
    headers = partial(answer_headers, is_public_https=app.config["SESSION_COOKIE_SECURE"])
    note_transport = parts.store.people.last_seen.note_transport

    def is_injecting() -> bool:
        return parts.drills.is_running

    polls = PollMiddleware(
        app.wsgi_app,
        parts.polls,
        sessions,
        settings,
        parts.limits,
        headers,
        is_injecting=is_injecting,
        note_transport=note_transport,
    )
    sends = SendMiddleware(polls, sessions, parts.limits, headers, is_injecting)
    app.wsgi_app = ProxyMiddleware(RequestMiddleware(sends, sessions), settings)  # type: ignore[method-assign]


def _make_parts(app: Flask, settings: Settings, instance: str) -> Parts:
    bus = Bus()
    times = settings.events_kept, settings.minutes_kept, settings.hours_kept
    kept = Kept(*times, settings.events_most, settings.questions_kept)
    store = Store(app, settings.data_dir, bus, settings.workers, kept)
    knowledge = make_knowledge(settings)
    unanswered = Unanswered(store.questions, knowledge, settings.questions_kept > 0)
    provider = _make_provider(settings, store, knowledge, unanswered)
    chat = Chat(store, assistant_answers=settings.assistant != "off")
    renderer = Renderer(app, f"{settings.url_prefix}/", store.histories.mark)
    reader = Reader(store, chat, renderer)
    store.histories.look_back()
    epoch = store.people.epoch()
    connections = make_connections(settings, store)
    auth, limits = Auth(app, store, settings, bus), Limits(settings, store.leases)
    websockets = WebSockets(connections, settings.max_sockets_per_user)
    drills = Drills(store, bus, websockets, settings.drill_schedule)
    bus.on_broadcast = connections.broadcast
    worker, meters = Worker(settings.data_dir / "workers"), Meters()
    store.database.on_commit_time = partial(meters.observe, "commit")
    network_of = lru_cache(MOST_NETWORKS)(partial(network_key, app.config["SECRET_KEY"]))
    polls = Polls(reader, bus, connections, epoch, store.histories, network_of)
    keys = [*app.config["SECRET_KEY_FALLBACKS"], app.config["SECRET_KEY"]]
    preload = partial(preload_module, app.jinja_env, table_json())
    static = StaticFiles(asset_dir("static"), asset_dir("templates"), preload, settings.static_joined)
    rollups = Rollups(store.events, store.measures, partial(drill_times, store.drills), settings.data_dir)
    return Parts(
        settings=settings,
        static=static,
        instance=instance,
        epoch=epoch,
        bus=bus,
        store=store,
        chat=chat,
        auth=auth,
        administration=Administration(store),
        knowledge=knowledge,
        provider=provider,
        own_files=make_own_files(settings),
        unanswered=unanswered,
        renderer=renderer,
        reader=reader,
        polls=polls,
        connections=connections,
        websockets=websockets,
        limits=limits,
        drills=drills,
        drill_left_ms=drills.left_ms,
        runner=Runner(store.runs, bus, provider, worker, settings.longest_answer),
        network_of=network_of,
        errors=ErrorLog(store.error_groups, meters, VERSION),
        worker=worker,
        meters=meters,
        worker_rows=WorkerRows(store.measures, meters, worker.name, partial(_gauges, connections)),
        rollups=rollups,
        tickets=Tickets(keys, f"{app.config['SESSION_COOKIE_NAME']}_test", settings.workers),
        mending=Mending(store, bus, polls, network_of),
        bundler=Bundler(app, store, settings),
        alerts=_make_alerts(app, settings, store, rollups),
    )


def _make_provider(settings: Settings, store: Store, knowledge: Knowledge, unanswered: Unanswered) -> Provider:
    def tell(history: Sequence[Turn], asking: int) -> str:
        # Anybody in a conversation may have its last question answered again: not another's of what is not theirs.
        if (person := asks_for_connection(history)) and person == asking:
            return connection_words(store, settings.data_dir, person)
        person, question = asked_for(history, WHAT_HAPPENED)
        return happened_words(store, person, question, now_ms()) if person and person == asking else ""

    return make_provider(settings, knowledge, store.leases, tell, unanswered.note)


def _make_alerts(app: Flask, settings: Settings, store: Store, rollups: Rollups) -> AlertWatch:
    def post(uuid: str, title: str, markdown: str) -> None:
        text = GrowingAnswer()
        text.feed(markdown)
        text.finish()
        store.operations.post(uuid, title, markdown, [html for _, html in text.changed()])

    return AlertWatch(
        store,
        partial(observe, store, settings.data_dir),
        Channels(settings, post, lru_cache(1)(partial(trust, os.environ))),
        rollups.is_leader,
        app.app_context,
        f"{app_url(settings)}/monitor/incidents",
        bool(settings.alert_ping),
    )


def _gauges(connections: Connections) -> dict[str, Any]:
    """Return the gauges of a worker's row."""
    return {"sockets": connections.websocket_count, "polls": connections.long_poll_count}


def _cookie_prefix(settings: Settings) -> str:
    """Return what makes browsers refuse a cookie of this name from a neighbour's site, or by http."""
    if not settings.public_url.startswith("https:"):
        return ""
    return "__Secure-" if settings.url_prefix else "__Host-"


def _flask_settings(settings: Settings, keys: list[str], instance: str) -> dict[str, Any]:
    return {
        "SECRET_KEY": keys[0],
        "SECRET_KEY_FALLBACKS": keys[:0:-1],  # the oldest first
        "SESSION_COOKIE_NAME": f"{_cookie_prefix(settings)}chatapp_{instance}",
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": settings.public_url.startswith("https:"),
        "SESSION_COOKIE_PATH": f"{settings.url_prefix}/",
        "SESSION_REFRESH_EACH_REQUEST": False,  # else every poll would set the cookie
        "PERMANENT_SESSION_LIFETIME": timedelta(days=settings.session_lifetime + COOKIE_OUTLIVES_DAYS),
        "WTF_CSRF_TIME_LIMIT": None,  # the token lives as long as its session
        "WTF_CSRF_SSL_STRICT": False,  # strict proxies strip Referer
        "MAX_CONTENT_LENGTH": LARGEST_BODY,
        "MAX_FORM_MEMORY_SIZE": LARGEST_BODY,
    }
