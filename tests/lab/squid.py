"""A real squid: in front of the server as a reverse proxy, or as a company's forward proxy."""

import os
import pwd
import shutil
from pathlib import Path

from lab.program import Program

COMMON = """
visible_hostname lab
pid_filename none
cache_log DIR/cache.log
access_log stdio:DIR/access.log
cache_mem 16 MB
coredump_dir DIR
shutdown_lifetime 0 seconds
max_filedescriptors 4096
pinger_enable off
"""

REVERSE = """
http_port 127.0.0.1:LISTEN accel no-vhost defaultsite=127.0.0.1:LISTEN
cache_peer 127.0.0.1 parent TARGET 0 no-query originserver name=chat
http_access allow all
cache_peer_access chat allow all
"""
UPGRADES = "http_upgrade_request_protocols websocket allow all\n"
FORWARD = "http_port 127.0.0.1:LISTEN\nhttp_access allow all\n"

# Keeps answers to polls, which must not be kept.
KEEPS_POLLS = """
acl polls urlpath_regex /changes\\? transport=polling
cache allow polls
cache deny all
refresh_pattern . 1 100% 1 override-expire override-lastmod ignore-no-store ignore-private ignore-reload
"""

KINDS = {
    "good": REVERSE + UPGRADES,  # as docs/operations.md has it
    "plain": REVERSE,  # squid's own default: upgrades are dropped
    "keeps-polls": REVERSE + KEEPS_POLLS,
    "short": REVERSE + UPGRADES + "read_timeout 4 seconds\n",
    "forward": FORWARD,
    "forward-no-connect": "acl tunnel method CONNECT\nhttp_access deny tunnel\n" + FORWARD,
}


class Squid(Program):
    """`kind` is one of KINDS. As a forward proxy it connects to every requested host, not only to the target."""

    name = "squid"

    def __init__(self, kind: str, target: int) -> None:
        super().__init__(target)
        self.text = KINDS[kind] + COMMON
        if kind != "keeps-polls":
            self.text += "cache deny all\n"
        if os.geteuid() == 0:  # squid refuses to run as root
            users = {entry.pw_name for entry in pwd.getpwall()}
            user = next(name for name in ("proxy", "squid", "nobody") if name in users)
            self.text += f"cache_effective_user {user}\n"
            shutil.chown(self.directory, user)

    def configuration(self) -> str:
        """The kind, and what every squid needs to run beside others."""
        return self.text

    def arguments(self, file: Path) -> list[str]:
        """In the foreground, under a name of its own: several run at once."""
        return ["-N", "-n", f"lab{self.port}", "-f", str(file)]

    @property
    def address(self) -> str:
        """host:port of a forward proxy."""
        return f"127.0.0.1:{self.port}"
