"""A real HAProxy in front of the server, in the configurations that people meet."""

from pathlib import Path

from lab.program import Program

MAIN = """
defaults
    mode MODE
    timeout connect 5s
    timeout client  CLIENT
    timeout server  SERVER
    timeout tunnel  TUNNEL
frontend web
    bind 127.0.0.1:LISTEN BIND
    RULES
    FORWARDED
    default_backend chat
backend chat
    BACK
    server chat1 127.0.0.1:TARGET
"""

# kind → timeouts of client, server and tunnel, and rules of the frontend
KINDS = {
    "good": ("75s", "75s", "1h", ""),  # as docs/operations.md has it
    "tunnel": ("75s", "75s", "4s", ""),  # cuts silent WebSockets
    "server": ("75s", "3s", "1h", ""),  # cuts held polls
    "deny": ("75s", "75s", "1h", "http-request deny if { hdr(Upgrade) -m found }"),  # no upgrades here
    "strip": ("75s", "75s", "1h", "http-request del-header Upgrade"),
    "ten": ("10s", "10s", "10s", ""),  # everything that is quiet for 10 s
    "shares": ("75s", "75s", "1h", ""),  # its connections to the server are everybody's
    "shares-h2": ("75s", "75s", "1h", ""),  # and clients speak HTTP/2 to it
    "tls": ("75s", "75s", "1h", "http-request set-header X-Forwarded-Proto https"),  # ends TLS; with a certificate
    "tls-tcp": ("75s", "75s", "1h", ""),  # the same before something that is no web server
}


class HAProxy(Program):
    """`kind` is one of KINDS; with a certificate (and its key, in one file) it speaks TLS."""

    name = "haproxy"

    def __init__(self, kind: str, target: int, certificate: Path | None = None) -> None:
        super().__init__(target)
        self.kind, self.certificate = kind, certificate

    @property
    def url(self) -> str:
        """Where clients reach the server through it."""
        return super().url.replace("http:", "https:") if self.certificate else super().url

    def configuration(self) -> str:
        """The kind's time-outs and rules."""
        client, server, tunnel, rules = KINDS[self.kind]
        text = MAIN.replace("CLIENT", client).replace("SERVER", server).replace("TUNNEL", tunnel)
        shares = "http-reuse always" if self.kind.startswith("shares") else ""
        bind = f"ssl crt {self.certificate}" if self.certificate else "proto h2" if self.kind.endswith("-h2") else ""
        text = text.replace("FORWARDED", "" if self.kind.endswith("-tcp") else "option forwardfor")
        text = text.replace("MODE", "tcp" if self.kind.endswith("-tcp") else "http")
        return text.replace("RULES", rules).replace("BACK", shares).replace("BIND", bind)

    def arguments(self, file: Path) -> list[str]:
        """In the foreground."""
        return ["-db", "-f", str(file)]
