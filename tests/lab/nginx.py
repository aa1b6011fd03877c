"""A real nginx in front of the server, in the configurations that people meet."""

import os
import re
import signal
from pathlib import Path

from lab.program import Program
from lab.server import ROOT

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
pid DIR/nginx.pid;
error_log DIR/error.log;
USER
events { worker_connections 512; }
http {
    access_log DIR/access.log;
    client_body_temp_path DIR/body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
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


def deny_site() -> str:
    """The same, but WebSocket is refused, as a filter does that does not know the host."""
    return good_site().replace("    location / {", "    location /ws { return 403; }\n    location / {")


SITES = {
    "good": good_site,
    "strip": lambda: STRIP,
    "headers": lambda: HEADERS,
    "buffering": lambda: BUFFERING,
    "short": short_site,
    "deny": deny_site,
}


class Nginx(Program):
    """`kind` is one of SITES."""

    name = "nginx"

    def __init__(self, kind: str, target: int) -> None:
        super().__init__(target)
        self.site = SITES[kind]()

    def configuration(self) -> str:
        """The site, within what every nginx needs."""
        user = "user root;" if os.geteuid() == 0 else ""
        return MAIN.replace("SITE", self.site).replace("USER", user)

    def arguments(self, file: Path) -> list[str]:
        """All its files lie in our directory."""
        return ["-p", str(self.directory), "-e", str(self.directory / "error.log"), "-c", str(file)]

    def change(self, kind: str) -> None:
        """Have it read another configuration, as its admin would: edit the file, reload."""
        self.site = SITES[kind]()
        (self.directory / "conf").write_text(self.filled(self.configuration()))
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def access_log(self) -> str:
        """One line a finished request."""
        return (self.directory / "access.log").read_text()
