"""The ways of a notice, on real sockets: a signed webhook, mails, a dead man's switch; and what is refused."""

import base64
import email
import email.policy
import hashlib
import hmac
import json
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from lab.processes import wait_for
from lab.server import Server, run_chatapp

from chatapp.config import ConfigError, Settings, load
from chatapp.monitoring import channels as module
from chatapp.monitoring.channels import ChannelFailed, Channels, markdown
from chatapp.store.alerts import Notice

DATA: dict[str, Any] = {
    "kind": "opened",
    "rules": ["polling-share"],
    "text": "Since 14:02 UTC, 38 of 61 people poll: in network a1b2 the upgrade to WebSocket is refused.",
    "to_do": "Its proxy must pass the upgrade on: HTTP/1.1.",
    "opened": 1_800_000_000_000,
    "closed": None,
    "url": "https://chat.example.org/monitor/incidents",
}
SECRET = "a secret that nobody sees"


def notice(channel: str, number: int = 0, **data: Any) -> Notice:
    return Notice(1, 7, number, channel, DATA | data, 1_800_000_000_000, 0)


def channels(tls: Callable[[], ssl.SSLContext] = ssl.create_default_context, **settings: Any) -> Channels:
    return Channels(Settings(**settings), lambda *_: None, tls)


# The webhook


class Hook(BaseHTTPRequestHandler):
    """Answers as `server.answer` says, and keeps the requests."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append((self.command, self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        status, location, wait_s = self.server.answer  # type: ignore[attr-defined]
        time.sleep(wait_s)
        try:
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.end_headers()
        except OSError:
            pass  # it did not wait

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


class HookServer(ThreadingHTTPServer):
    """A real HTTP server."""

    answer: tuple[int, str, float] = (204, "", 0)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.got: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?team=1"


@pytest.fixture
def hook() -> Iterator[HookServer]:
    server = HookServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_webhook_is_signed_over_time_and_body(hook: HookServer) -> None:
    channels(alert_webhook=hook.url, alert_webhook_secret=SECRET).send(notice("webhook", 2))
    ((method, path, headers, body),) = hook.got
    assert (method, path, headers["Content-Type"]) == ("POST", "/hook?team=1", "application/json")
    told = json.loads(body)
    assert (told["incident"], told["notice"], told["text"]) == (7, 2, DATA["text"])
    signed = headers["Chatapp-Timestamp"].encode() + b"." + body
    assert headers["Chatapp-Signature"] == "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert abs(int(headers["Chatapp-Timestamp"]) - time.time()) < 5
    assert headers["Chatapp-Notice"] == "7-2" and SECRET.encode() not in body


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(hook: HookServer, status: int) -> None:
    hook.answer = (status, hook.url.replace("hook", "elsewhere"), 0)
    with pytest.raises(ChannelFailed, match="redirect"):
        channels(alert_webhook=hook.url, alert_webhook_secret=SECRET).send(notice("webhook"))
    assert len(hook.got) == 1


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_refusal_is_a_failure(hook: HookServer, status: int) -> None:
    hook.answer = (status, "", 0)
    with pytest.raises(ChannelFailed, match=f"answered {status}"):
        channels(alert_webhook=hook.url, alert_webhook_secret=SECRET).send(notice("webhook"))


def test_a_hook_that_does_not_answer_is_given_up(hook: HookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    hook.answer = (204, "", 2.0)
    started = time.monotonic()
    with pytest.raises(ChannelFailed, match=r"no answer within 0\.5 s"):
        channels(alert_webhook=hook.url, alert_webhook_secret=SECRET).send(notice("webhook"))
    assert time.monotonic() - started < 1.5


REFUSED = [
    "169.254.169.254",  # link-local: where clouds give out secrets
    "[fe80::1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",  # the same through NAT64, 6to4
    "[2002:a9fe:a9fe::1]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "224.0.0.1",
    "2852039166",  # 169.254.169.254 as a number
    "0xa9fea9fe",
]


@pytest.mark.parametrize("host", REFUSED)
def test_addresses_that_nobody_should_call_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("called"))
    with pytest.raises(ChannelFailed, match="never called"):
        channels(alert_webhook=f"http://{host}/latest", alert_webhook_secret=SECRET).send(notice("webhook"))
    with pytest.raises(ChannelFailed, match="never called"):
        channels(alert_ping=f"http://{host}/latest").ping()


def test_a_name_is_called_at_the_address_that_was_checked(hook: HookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int, *_: object, **__: object) -> list[Any]:
        """The first answer is harmless, the second one is not."""
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 or host != "hooks.example.org" else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = hook.url.replace("127.0.0.1", "hooks.example.org")
    channels(alert_webhook=url, alert_webhook_secret=SECRET).send(notice("webhook"))
    assert asked.count("hooks.example.org") == 1
    assert hook.got[0][2]["Host"].startswith("hooks.example.org:")


def test_of_a_name_with_several_addresses_none_may_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("127.0.0.1", "169.254.169.254")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(ChannelFailed, match="never called"):
        channels(alert_ping="http://both.example.org/").ping()


def test_a_certificate_that_nobody_knows_is_refused_and_a_known_one_is_not(certificate: Path) -> None:
    server = HookServer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = server.url.replace("http:", "https:")
    try:
        with pytest.raises(ChannelFailed, match="no secure connection"):
            channels(alert_webhook=url, alert_webhook_secret=SECRET).send(notice("webhook"))
        known = ssl.create_default_context(cafile=str(certificate))
        channels(lambda: known, alert_webhook=url, alert_webhook_secret=SECRET).send(notice("webhook"))
        assert len(server.got) == 1
    finally:
        server.shutdown()
        server.server_close()


def test_nothing_listens_or_nobody_knows_the_name() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    for url, words in ((f"http://127.0.0.1:{port}/T0K3N", "refused"), ("http://nowhere.invalid/", "name")):
        with pytest.raises(ChannelFailed, match=words) as caught:
            channels(alert_ping=url).ping()
        assert "T0K3N" not in str(caught.value)


def test_the_ping_is_a_get(hook: HookServer) -> None:
    channels(alert_ping=hook.url).ping()
    assert [one[:2] for one in hook.got] == [("GET", "/hook?team=1")]


# Mails


class MailServer:
    """A real SMTP server for one connection at a time. `offers`: extensions; `refuses`: a command to refuse;
    `certificate`: it speaks TLS, from the beginning or after STARTTLS."""

    def __init__(self, *offers: str, refuses: str = "", certificate: Path | None = None) -> None:
        self.certificate = certificate
        self.offers, self.refuses = offers, refuses
        self.commands: list[str] = []
        self.mails: list[EmailMessage] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            try:
                if self.certificate and "STARTTLS" not in self.offers:
                    connection = self._secure(connection)
                with connection, connection.makefile("rwb", buffering=0) as file:
                    self._talk(file, connection)
            except OSError:
                continue  # it does not trust us

    def _secure(self, connection: socket.socket) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate or "")
        return context.wrap_socket(connection, server_side=True)

    def _talk(self, file: Any, connection: socket.socket) -> None:
        def say(line: str) -> None:
            file.write(line.encode() + b"\r\n")

        if not isinstance(connection, ssl.SSLSocket) or "STARTTLS" not in self.offers:
            say("220 lab")
        while line := file.readline().decode().strip():
            word = line.split()[0].upper()
            self.commands.append(line)
            if word == self.refuses:
                say("550 not here")
            elif word == "EHLO":
                names = ["lab", *self.offers]
                for number, name in enumerate(names):
                    say(f"250{'-' if number + 1 < len(names) else ' '}{name}")
            elif word == "STARTTLS":
                say("220 go on")
                with self._secure(connection) as safe, safe.makefile("rwb", buffering=0) as inner:
                    return self._talk(inner, safe)
            elif word == "AUTH":
                say("235 welcome")
            elif word == "DATA":
                say("354 go on")
                lines = []
                while (part := file.readline()) != b".\r\n":
                    lines.append(part.removeprefix(b"."))
                self.mails.append(email.message_from_bytes(b"".join(lines), policy=email.policy.default))  # type: ignore[arg-type]
                say("250 taken")
            elif word == "QUIT":
                say("221 bye")
                return
            else:
                say("250 fine")


@pytest.fixture
def mail_server() -> Iterator[Callable[..., MailServer]]:
    made: list[MailServer] = []

    def start(*offers: str, **options: Any) -> MailServer:
        made.append(MailServer(*offers, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


TO = ("ada@example.org", "olga@example.org")


def test_a_mail_says_it_all_and_those_of_an_incident_are_a_thread(mail_server: Callable[..., MailServer]) -> None:
    server = mail_server()
    ways = channels(smtp_url=f"smtp://127.0.0.1:{server.port}", alert_emails=TO)
    assert ways.names == ["operations", "email"]
    ways.send(notice("email"))
    ways.send(notice("email", 1, kind="closed", to_do="", text="Over and ünder"))
    first, second = server.mails
    assert first["Subject"] == f"Alert: {DATA['text']}" and second["Subject"] == "Over: Over and ünder"
    assert [one.addr_spec for one in first["To"].addresses] == list(TO) and first["From"] == TO[0]
    text = first.get_content()
    assert DATA["text"] in text and f"What to do: {DATA['to_do']}" in text and DATA["url"] in text
    assert second["In-Reply-To"] == first["Message-ID"] and "What to do" not in second.get_content()
    assert [line for line in server.commands if "<" in line][1:3] == [f"rcpt TO:<{one}>" for one in TO]


def test_a_line_break_in_a_text_makes_no_header(mail_server: Callable[..., MailServer]) -> None:
    server = mail_server()
    text = "one\r\nBcc: mallory@example.org\r\n\r\ntwo"
    channels(smtp_url=f"smtp://127.0.0.1:{server.port}", alert_emails=TO).send(notice("email", text=text))
    (mail,) = server.mails
    assert mail["Bcc"] is None and mail["Subject"] == "Alert: one Bcc: mallory@example.org two"


def test_user_and_password_may_hold_any_letter(mail_server: Callable[..., MailServer]) -> None:
    server = mail_server("AUTH PLAIN")
    url = f"smtp://robot%40example.org:p%40ss%2Fword%25@127.0.0.1:{server.port}"
    channels(smtp_url=url, alert_emails=TO).send(notice("email"))
    (auth,) = [line for line in server.commands if line.startswith("AUTH")]
    assert base64.b64decode(auth.split()[-1]).decode() == "\0robot@example.org\0p@ss/word%"
    assert server.mails[0]["From"] == "robot@example.org"


def test_a_password_goes_over_tls_only(mail_server: Callable[..., MailServer], monkeypatch: pytest.MonkeyPatch) -> None:
    server = mail_server("AUTH PLAIN")
    monkeypatch.setattr(module, "_is_own", lambda _server: False)  # as if it was another machine
    url = f"smtp://robot:password@127.0.0.1:{server.port}"
    with pytest.raises(ChannelFailed, match="TLS only"):
        channels(smtp_url=url, alert_emails=TO).send(notice("email"))
    assert not any(line.upper().startswith(("AUTH", "MAIL")) for line in server.commands)


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_mails_go_by_tls_to_who_can_prove_the_name(
    mail_server: Callable[..., MailServer], certificate: Path, scheme: str
) -> None:
    offers = ("AUTH PLAIN", "STARTTLS") if scheme == "smtp" else ("AUTH PLAIN",)
    server = mail_server(*offers, certificate=certificate)
    options = {"smtp_url": f"{scheme}://robot:password@127.0.0.1:{server.port}", "alert_emails": TO}
    with pytest.raises(ChannelFailed, match="no secure connection"):
        channels(**options).send(notice("email"))
    assert not any(line.startswith("AUTH") for line in server.commands)
    known = ssl.create_default_context(cafile=str(certificate))
    channels(lambda: known, **options).send(notice("email"))
    assert len(server.mails) == 1 and any(line.startswith("AUTH") for line in server.commands)


def test_a_refused_mail_is_a_failure_without_secrets(mail_server: Callable[..., MailServer]) -> None:
    for command in ("MAIL", "AUTH", "DATA"):
        server = mail_server("AUTH PLAIN", refuses=command)
        url = f"smtp://robot:password@127.0.0.1:{server.port}"
        with pytest.raises(ChannelFailed, match="answered 550") as caught:
            channels(smtp_url=url, alert_emails=TO).send(notice("email"))
        assert "password" not in str(caught.value)


# Words and settings


def test_the_message_of_the_conversation_is_markdown() -> None:
    text = markdown(DATA)
    assert text.split("\n\n") == [
        f"**Alert.** {DATA['text']}",
        f"**What to do:** {DATA['to_do']}",
        f"[All incidents]({DATA['url']})",
    ]
    assert markdown(DATA | {"kind": "closed", "to_do": "", "url": "/monitor/incidents"}) == f"**Over.** {DATA['text']}"


WRONG = {
    "SMTP_URL": [
        "mail.example.org",
        "http://x",
        "smtp://",
        "smtp://x:port",
        "smtp://user@x",
        "smtp://x/path",
        "smtp://x?a=b",
        "smtp://a:%C3%B6@x",
    ],
    "ALERT_EMAILS": ["ada", "ada@example.org, olga", "Ada <ada@example.org>", "ä@example.org"],
    "ALERT_WEBHOOK": ["hooks.example.org", "ftp://x", "http://user:pass@x/", "http://x/a b", "http://x:99999/"],
    "ALERT_PING": ["x", "file:///etc/passwd"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_setting_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"CHATAPP_{name}") as caught:
        load({f"CHATAPP_{name}": value})
    assert name == "ALERT_EMAILS" or f"={value!r}" not in str(caught.value), "it may hold a secret"


TOGETHER = {
    "SMTP_URL": "smtp://mail.example.org",
    "ALERT_EMAILS": "a@example.org",
    "ALERT_WEBHOOK": "https://hooks.example.org/",
    "ALERT_WEBHOOK_SECRET": SECRET,
}


@pytest.mark.parametrize("name", TOGETHER)
def test_settings_that_go_together(name: str) -> None:
    with pytest.raises(ConfigError, match="go together"):
        load({f"CHATAPP_{name}": TOGETHER[name]})
    load({f"CHATAPP_{each}": value for each, value in TOGETHER.items()})


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    urls = {"smtp_url": f"smtp://robot:{SECRET.replace(' ', '-')}@x", "alert_emails": "a@example.org"}
    urls |= {"alert_webhook": "https://x/T0K3N", "alert_webhook_secret": SECRET, "alert_ping": "https://x/p1ng"}
    shown = run_chatapp(Server(tmp_path, **urls), "config").stdout
    assert "CHATAPP_ALERT_PING = (set)" in shown
    assert not any(secret in shown for secret in (SECRET, SECRET.replace(" ", "-"), "T0K3N", "p1ng"))


def test_the_command_tries_every_channel(hook: HookServer, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    settings: dict[str, object] = {"alert_webhook": hook.url, "alert_webhook_secret": SECRET}
    settings |= {"smtp_url": f"smtp://127.0.0.1:{port}", "alert_emails": "a@example.org"}
    with Server(tmp_path, assistant="off", **settings) as server:
        result = run_chatapp(server, "alerts", "test", "--send", "--json")
        assert result.returncode == 1
        assert json.loads(result.stdout) == {"operations": "", "webhook": "", "email": "Connection refused"}
        assert json.loads(hook.got[0][3])["kind"] == "test"


def test_a_mail_server_that_hangs_holds_nobody_up(hook: HookServer, tmp_path: Path) -> None:
    """In a real server, under gevent: the mail is given up in time, looks go on, the dead man's switch is asked."""
    with closing(socket.create_server(("127.0.0.1", 0))) as hangs:
        settings: dict[str, object] = {
            "alert_ping": hook.url,
            "alert_emails": "a@example.org",
            "smtp_url": f"smtp://127.0.0.1:{hangs.getsockname()[1]}",
        }
        with Server(tmp_path, assistant="off", **settings) as server:

            def row(query: str) -> Any:
                with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as connection:
                    found = connection.execute(query).fetchone()
                    connection.commit()
                    return found

            columns = "incident_id, number, channel, data, at, next_at"
            row(f"INSERT INTO notices ({columns}) VALUES (7, 0, 'email', '{json.dumps(DATA)}', 1, 1)")
            wait_for(lambda: row("SELECT tries FROM notices")[0] == 1, 5, "the mail is tried")
            started, slowest = time.monotonic(), 0.0
            while not row("SELECT error FROM notices")[0]:
                before = time.monotonic()
                assert server.status("/readyz") == 200 and before - started < 13
                slowest = max(slowest, time.monotonic() - before)
                time.sleep(0.1)
            assert "answer" in row("SELECT error FROM notices")[0] and slowest < 1
            wait_for(lambda: hook.got, 25, "a ping after a look")
            assert hook.got[0][0] == "GET" and row("SELECT max(seen_at) FROM alerts")[0] > 0
