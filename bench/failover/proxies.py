"""Real proxies before the fault proxy: what they do to connections needs no imitation."""

import re
import shutil

from lab.haproxy import HAProxy
from lab.nginx import Nginx, good_site
from lab.program import FOLDERS, Program
from lab.squid import Squid


def _nginx(kind: str, target: int, **changes: str) -> Nginx:
    nginx = Nginx(kind, target)
    for pattern, value in changes.items():
        nginx.site = re.sub(rf"{pattern} \w+;", f"{pattern} {value};", nginx.site)
    return nginx


def missing(kind: str) -> str:
    """The program that this proxy needs and that is not there."""
    program = kind.partition("-")[0]
    return "" if not program or shutil.which(program, path=FOLDERS) else program


def front(kind: str, target: int) -> Program:
    """Start one of: haproxy-10, nginx-60, nginx-headers, nginx-strip, squid."""
    if kind == "haproxy-10":
        return HAProxy("ten", target).start()
    if kind == "squid":
        return Squid("keeps-polls", target).start()
    if kind == "nginx-60":
        assert "proxy_read_timeout" in good_site()
        return _nginx("good", target, proxy_read_timeout="60s", proxy_send_timeout="60s").start()
    return _nginx(kind.removeprefix("nginx-"), target).start()
