"""Gunicorn's settings: one process, gevent, and a drain that tells every connection when to come back."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()  # before anything else is imported, also where gunicorn preloads

import gc  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from flask import Flask  # noqa: E402
from gevent.event import Event  # noqa: E402
from gunicorn.app.base import BaseApplication  # noqa: E402

from chatapp import create_app, descriptors  # noqa: E402
from chatapp.access_log import AccessLog  # noqa: E402
from chatapp.config import load  # noqa: E402
from chatapp.gunicorn_bridge import IdleConnections, Limits, Worker, tune  # noqa: E402
from chatapp.strangers import Strangers  # noqa: E402

CLOSE_IDLE_EVERY_S = 0.2
DRAIN_LOOK_S = 1.0  # how late a drain begins at most where it is no signal that ends the worker

once_listening = ""  # what the command has to say then
settings = load(os.environ)
descriptors.raise_limit()  # each WebSocket is one
# A thread that renders something long gives way to the event loop after so many seconds (Python's default is 5 ms).
sys.setswitchinterval(0.001)

bind = f"{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"
worker_class = Worker
workers = settings.workers
worker_connections = descriptors.for_requests(descriptors.allowed())  # neither held polls nor WebSockets
sendfile = False  # it would write past our time-outs
keepalive = 75  # seconds; above the usual 60 of proxies, so that they, not we, drop an idle connection
timeout = 60  # seconds without a sign of life of the worker's event loop
graceful_timeout = 10  # seconds
limit_request_line = 8190  # gunicorn's most, and nginx's and Apache's own: a poll of 100 feeds takes 5.7 kB
# No header of a client says anything about where it comes from; chatapp.proxies believes declared proxies.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
control_socket_disable = True  # else two instances of one user meet on one path
accesslog = "-"
logger_class = AccessLog
loglevel = "warning"
proc_name = "chatapp"


def when_ready(_arbiter: Any) -> None:
    """Say where it serves: connections are taken from now on."""
    print(once_listening, flush=True)


def pre_request(_worker: Any, _request: Any) -> None:
    """Nothing. Gunicorn's own says each request to a log that nobody reads."""


def post_worker_init(worker: Any) -> None:
    """Start the background work, and watch for the end."""
    parts = worker.wsgi.extensions["chatapp"]
    tune(worker)
    strangers = Strangers(settings.max_sockets_per_address, descriptors.for_strangers(descriptors.allowed()))
    worker.limits = Limits(strangers, settings.request_timeout, keepalive)
    gc.collect()
    gc.freeze()  # what was loaded stays: a full collection that looks at all of it would hold the loop for 50 ms
    parts.start()
    parts.polls.access_log = worker.log.note

    idle = IdleConnections(worker)
    ending = Event()
    _tell_of_term(ending)

    def watch() -> None:
        while worker.alive:
            ending.wait(DRAIN_LOOK_S)
        parts.drain()
        while True:  # until the process ends: some came in the last moment, or have just been answered
            idle.close()
            gevent.sleep(CLOSE_IDLE_EVERY_S)

    gevent.spawn(watch)


def _tell_of_term(ending: Event) -> None:
    """Set this at SIGTERM, after what gunicorn does then, for which it has no hook in a worker."""
    gunicorns: Any = signal.getsignal(signal.SIGTERM)

    def terminate(number: int, frame: Any) -> None:
        gunicorns(number, frame)
        ending.set()

    signal.signal(signal.SIGTERM, terminate)
    signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn has it: requests are not to be disturbed


def worker_exit(_server: Any, worker: Any) -> None:
    """Drain again, as the watcher may have lost the race, and wait for the WebSockets: gunicorn does not know them."""
    app = getattr(worker, "wsgi", None)
    if app is not None and hasattr(app, "extensions"):
        app.extensions["chatapp"].finish()
    worker.log.write_out()


class Gunicorn(BaseApplication):  # type: ignore[misc]
    """Gunicorn in this process, with the settings above."""

    def load_config(self) -> None:
        """Called at the start and at every HUP."""
        for name, value in globals().items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Each worker's own app, made after the fork."""
        return create_app()
