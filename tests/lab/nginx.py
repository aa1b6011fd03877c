"""A real nginx in front of the server, in the configurations that people meet."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from lab.processes import free_port, kill_group, marked_environment, wait_for
from lab.server import ROOT

NGINX = "/usr/sbin/nginx"

# Nothing but proxy_pass: HTTP/1.0 to the product, Host rewritten, Upgrade gone, answers buffered.
STRIP = """
server {
    listen 127.0.0.1:LISTEN;
    location / { proxy_pass http://127.0.0.1:TARGET; proxy_buffering on; }
}
"""

# A strict gateway: only these headers get through, both for pages and for polls.
HEADERS = """
server {
    listen 127.0.0.1:LISTEN;
    location / {
        proxy_pass http://127.0.0.1:TARGET;
        proxy_pass_request_headers off;
        proxy_set_header Host $http_host;
        proxy_set_header Cookie $http_cookie;
        proxy_set_header Content-Type $content_type;
        proxy_set_header Content-Length $content_length;
        proxy_set_header Accept $http_accept;
        proxy_set_header Accept-Language $http_accept_language;
        proxy_set_header User-Agent $http_user_agent;
    }
}
"""

# What many tutorials give: a block for the WebSocket, and the rest as nginx does it by itself: by HTTP/1.0, collected.
BUFFERING = """
server {
    listen 127.0.0.1:LISTEN;
    location /ws {
        proxy_pass http://127.0.0.1:TARGET;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
        proxy_set_header Host $http_host;
    }
    location / { proxy_pass http://127.0.0.1:TARGET; proxy_set_header Host $http_host; }
}
"""

MAIN = """
daemon off;
worker_processes 1;
pid PREFIX/nginx.pid;
error_log PREFIX/error.log;
USER
events { worker_connections 512; }
http {
    access_log PREFIX/access.log;
    client_body_temp_path PREFIX/body;
    proxy_temp_path PREFIX/proxy;
    fastcgi_temp_path PREFIX/fastcgi;
    uwsgi_temp_path PREFIX/uwsgi;
    scgi_temp_path PREFIX/scgi;
    SITE
}
"""


def good_site() -> str:
    """The file we give to operators, on a port of ours."""
    site = (ROOT / "deploy/nginx.conf").read_text()
    site = re.sub(r"listen 80;", "listen 127.0.0.1:LISTEN;", site)
    return site.replace("127.0.0.1:8000", "127.0.0.1:TARGET")


def short_site() -> str:
    """The same, but quiet connections are cut after 4 s."""
    return good_site().replace("proxy_read_timeout 75s;", "proxy_read_timeout 4s;")


SITES = {
    "good": good_site,
    "strip": lambda: STRIP,
    "headers": lambda: HEADERS,
    "buffering": lambda: BUFFERING,
    "short": short_site,
}


class Nginx:
    """`kind` is one of SITES; `target` the port of the server behind it."""

    def __init__(self, kind: str, target: int) -> None:
        self.site = SITES[kind]()
        self.target = target
        self.port = free_port()
        self.prefix = Path(tempfile.mkdtemp(prefix="chatapp-nginx-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach the server through it."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Nginx":
        """Starts it and waits until it listens; AssertionError with its error log if it does not."""
        user = "user root;" if os.geteuid() == 0 else ""
        site = self.site.replace("LISTEN", str(self.port)).replace("TARGET", str(self.target))
        text = MAIN.replace("SITE", site).replace("USER", user).replace("PREFIX", str(self.prefix))
        (self.prefix / "nginx.conf").write_text(text)
        command = [NGINX, "-p", str(self.prefix), "-e", f"{self.prefix}/error.log", "-c", "nginx.conf"]
        self.process = subprocess.Popen(
            command, env=marked_environment(), stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_for(self._listens, 10, "nginx listens")
        except AssertionError as problem:
            errors = self.prefix / "error.log"
            log = errors.read_text() if errors.exists() else ""
            self.stop()
            raise AssertionError(f"{problem}\n{log}") from None
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def access_log(self) -> str:
        """One line a finished request."""
        return (self.prefix / "access.log").read_text()

    def stop(self) -> None:
        """Ends it and removes its directory."""
        process, self.process = self.process, None
        if process is not None:
            kill_group(process.pid)
            process.wait(10)
        shutil.rmtree(self.prefix, ignore_errors=True)

    def __enter__(self) -> "Nginx":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
