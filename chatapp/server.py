"""Gunicorn's settings and hooks: gevent workers that drain their connections before they end."""

from gevent import monkey

monkey.patch_all()  # before anything else is imported, also where gunicorn preloads

import gc  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from flask import Flask  # noqa: E402
from gevent.event import Event  # noqa: E402
from gunicorn.app.base import BaseApplication  # noqa: E402

from chatapp import create_app, descriptors  # noqa: E402
from chatapp.access_log import AccessLog  # noqa: E402
from chatapp.config import load  # noqa: E402
from chatapp.gunicorn_bridge import Limits, Worker  # noqa: E402
from chatapp.logs import init_logs, is_json, line_json  # noqa: E402
from chatapp.strangers import Strangers  # noqa: E402

CLOSE_IDLE_EVERY_S = 0.2
log = logging.getLogger("chatapp.server")

ALIVE_CHECK_S = 1.0  # at most so late does a drain start if the worker ends without a signal

start_message = ""  # printed once the sockets are open
settings = load(os.environ)
init_logs(settings.log_format)
AccessLog.is_json = is_json(settings.log_format, sys.stdout)
sys.setswitchinterval(0.001)  # s; rendering threads yield to the event loop sooner (Python's default: 5 ms)

bind = f"{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"
worker_class = Worker
workers = settings.workers
worker_connections = descriptors.for_requests(descriptors.allowed())  # long polls and WebSockets do not count
sendfile = False  # it would bypass our timeouts
keepalive = 75  # s; above the usual 60 s of proxies, so that they, not we, close an idle connection
timeout = 60  # s without a heartbeat of the worker's event loop
graceful_timeout = 10  # s
limit_request_line = 8190  # gunicorn's maximum, the default of nginx and Apache: a poll of 100 feeds takes 5.7 kB
# Gunicorn trusts no forwarding header; ProxyMiddleware trusts those of declared proxies.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
control_socket_disable = True  # else two instances of one user share one path
accesslog = "-"
logger_class = AccessLog
loglevel = "warning"
proc_name = "chatapp"


def when_ready(_arbiter: Any) -> None:
    """Print the address: connections are accepted from now on."""
    lines = start_message.splitlines()
    if AccessLog.is_json:
        lines = [line_json("start", message=line) for line in lines]
    print("\n".join(lines), flush=True)


def pre_request(_worker: Any, _request: Any) -> None:
    """Replace gunicorn's own hook, which writes a debug line for every request."""


def post_worker_init(worker: Any) -> None:
    """Start the background work, and a greenlet that drains at the worker's end."""
    parts = worker.wsgi.extensions["chatapp"]
    strangers = Strangers(settings.max_sockets_per_address, descriptors.for_strangers(descriptors.allowed()))
    worker.limits = Limits(strangers, settings.request_timeout, keepalive)
    gc.collect()
    gc.freeze()  # a full collection over all loaded modules would block the loop for 50 ms
    _log_greenlets()
    parts.start()
    parts.connections.log_access = worker.log.add_line

    terminated = Event()
    _set_at_sigterm(terminated)

    def drain_at_end() -> None:
        while worker.alive:
            terminated.wait(ALIVE_CHECK_S)
        parts.drain()
        while True:  # until the process ends: some were accepted last, or have just been answered
            worker.close_idle()
            gevent.sleep(CLOSE_IDLE_EVERY_S)

    gevent.spawn(drain_at_end)


def _log_greenlets() -> None:
    """Have an error that ends a greenlet or a thread logged like any other."""

    def tell(_context: object, kind: Any, error: Any, trace: Any) -> None:
        gevent.spawn(log.error, "a greenlet failed", exc_info=(kind, error, trace))  # the hub itself must not wait

    gevent.get_hub().print_exception = tell
    threading.excepthook = lambda failed: log.error("a thread failed", exc_info=failed.exc_value)


def _set_at_sigterm(event: Event) -> None:
    """Set an event after gunicorn's own SIGTERM handler: gunicorn has no hook for it in a worker."""
    gunicorns_handler: Any = signal.getsignal(signal.SIGTERM)

    def handle_sigterm(number: int, frame: Any) -> None:
        gunicorns_handler(number, frame)
        event.set()

    signal.signal(signal.SIGTERM, handle_sigterm)
    signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn does: system calls of requests are restarted


def worker_exit(_server: Any, worker: Any) -> None:
    """Drain, if the greenlet was too late, and wait for the WebSockets, which gunicorn does not track."""
    app = getattr(worker, "wsgi", None)
    if app is not None and hasattr(app, "extensions"):
        app.extensions["chatapp"].finish()
    worker.log.flush()


class Gunicorn(BaseApplication):  # type: ignore[misc]
    """Gunicorn in this process, with the settings above."""

    def load_config(self) -> None:
        """Set this module's settings. Called by gunicorn at the start and at every HUP."""
        for name, value in globals().items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return an app for this worker. Called by gunicorn after the fork."""
        return create_app()
