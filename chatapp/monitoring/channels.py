"""The ways of a notice: the Operations conversation, e-mail, a signed webhook; and the ping of a dead man's switch.

Addresses are resolved and checked before a connection is made, to that very address; redirects are not followed. Errors
name neither addresses nor passwords.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from email.utils import formatdate
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from gevent import Timeout

from chatapp.config import Settings, plain_address
from chatapp.store.alerts import Notice

OPERATIONS, EMAIL, WEBHOOK = "operations", "email", "webhook"
TIMEOUT_S = 10.0  # of each whole delivery
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Where clouds give out secrets, beside link-local addresses: AWS, Alibaba, Azure, Oracle.
METADATA = {ipaddress.ip_address(one) for one in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")}
TITLES = {"opened": "Alert", "joined": "Alert, too", "closed": "Over", "test": "Test"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Post = Callable[[str, str, str], object]  # id, title and Markdown of a message of the Operations conversation
Tls = Callable[[], ssl.SSLContext]


class ChannelFailed(Exception):
    """A notice could not be sent. The message is for operators, and holds no secret."""


class Channels:
    """The channels that the settings name."""

    def __init__(self, settings: Settings, post: Post, tls: Tls) -> None:
        self._settings, self._post, self._tls = settings, post, tls

    @property
    def names(self) -> list[str]:
        """The channels of a notice, the quickest first."""
        configured = {OPERATIONS: True, WEBHOOK: self._settings.alert_webhook, EMAIL: self._settings.alert_emails}
        return [name for name, value in configured.items() if value]

    def send(self, notice: Notice) -> None:
        """Send a notice. Raises ChannelFailed; for the Operations conversation StorageUnavailable."""
        if notice.channel == OPERATIONS:
            self._post(_uuid_of(notice), "Operations", markdown(notice.data))
            return
        try:
            with Timeout(TIMEOUT_S, TimeoutError("timed out")):
                if notice.channel == WEBHOOK:
                    self._call_webhook(notice)
                elif notice.channel == EMAIL:
                    self._mail(notice)
        except (OSError, HTTPException, ValueError) as error:
            raise ChannelFailed(_words(error)) from None

    def ping(self) -> None:
        """Tell the dead man's switch that the alerts are looked at. Raises ChannelFailed."""
        try:
            with Timeout(TIMEOUT_S, TimeoutError("timed out")):
                self._call("GET", self._settings.alert_ping, None, {})
        except (OSError, HTTPException, ValueError) as error:
            raise ChannelFailed(_words(error)) from None

    def _call_webhook(self, notice: Notice) -> None:
        body = json.dumps({"incident": notice.incident_id, "notice": notice.number, **notice.data}).encode()
        now = round(time.time())
        headers = {
            "Content-Type": "application/json",
            "Chatapp-Notice": f"{notice.incident_id}-{notice.number}",
            "Chatapp-Timestamp": str(now),
            "Chatapp-Signature": signature(self._settings.alert_webhook_secret, now, body),
        }
        self._call("POST", self._settings.alert_webhook, body, headers)

    def _call(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        is_tls, host = parts.scheme == "https", parts.hostname or ""
        port = parts.port or (443 if is_tls else 80)
        connection = _Pinned(host, port, reachable(host, port), self._tls if is_tls else None)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request(method, target, body, {"User-Agent": "chatapp", **headers})
            status = connection.getresponse().status
        finally:
            connection.close()
        if 300 <= status < 400:
            raise ChannelFailed(f"it answered with a redirect ({status}), which is not followed")
        if status >= 400:
            raise ChannelFailed(f"it answered {status}")

    def _mail(self, notice: Notice) -> None:
        parts, to = urlsplit(self._settings.smtp_url), self._settings.alert_emails
        user, host = unquote(parts.username or ""), parts.hostname or ""
        sender = user if "@" in user else to[0]
        message = mail(notice, sender, to)
        if parts.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, parts.port or 465, timeout=TIMEOUT_S, context=self._tls())
        else:
            server = smtplib.SMTP(host, parts.port or 587, timeout=TIMEOUT_S)
        with server:
            server.ehlo()
            is_safe = parts.scheme == "smtps" or _is_own(server)
            if parts.scheme == "smtp" and server.has_extn("starttls"):
                server.starttls(context=self._tls())
                is_safe = True
            if user and not is_safe:
                raise ChannelFailed("the mail server offers no TLS, and a password is sent by TLS only")
            if user:
                server.login(user, unquote(parts.password or ""))
            server.send_message(message, sender, to)


class _Pinned(HTTPConnection):
    """A connection to an address that was checked, even if the name has another one by now."""

    def __init__(self, host: str, port: int, address: Address, tls: Tls | None) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self._address, self._tls = address, tls

    def connect(self) -> None:
        """Connect, by TLS for https."""
        self.sock = socket.create_connection((str(self._address), self.port), TIMEOUT_S)
        if self._tls is not None:
            self.sock = self._tls().wrap_socket(self.sock, server_hostname=self.host)


def reachable(host: str, port: int) -> Address:
    """Return the address of a host. Raises ChannelFailed if one of its addresses must not be called."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found = [plain_address(str(info[4][0]).partition("%")[0]) for info in infos]
    if any(_is_refused(address) for address in found):
        raise ChannelFailed("its address is link-local, or one where a cloud keeps secrets: that is never called")
    return found[0]


def _is_refused(address: Address) -> bool:
    forms: list[Address | None] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        forms += [address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            forms.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return any(
        one.is_link_local or one.is_multicast or one.is_unspecified or one in METADATA
        for one in forms
        if one is not None
    )


def signature(secret: str, at: int, body: bytes) -> str:
    """Return the webhook's signature: of the time (s), a point and the body."""
    return "sha256=" + hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()


def markdown(data: Mapping[str, Any]) -> str:
    """Return a notice as a message of the Operations conversation."""
    paragraphs = [f"**{TITLES[data['kind']]}.** {data['text']}"]
    if data["to_do"]:
        paragraphs.append(f"**What to do:** {data['to_do']}")
    if data["url"].startswith("http"):
        paragraphs.append(f"[All incidents]({data['url']})")
    return "\n\n".join(paragraphs)


def mail(notice: Notice, sender: str, to: tuple[str, ...]) -> EmailMessage:
    """Return a notice as a mail; those of an incident are one thread."""
    data, message = notice.data, EmailMessage()
    domain = sender.rpartition("@")[2] or "chatapp"
    first = f"<chatapp-{notice.incident_id}-{data['opened']}"
    message["Subject"] = " ".join(f"{TITLES[data['kind']]}: {data['text']}".split())[:180]
    message["From"], message["To"] = sender, ", ".join(to)
    message["Date"] = formatdate(notice.at / 1000)
    message["Message-ID"] = f"{first}-{notice.number}@{domain}>"
    if notice.number:
        message["References"] = message["In-Reply-To"] = f"{first}-0@{domain}>"
    lines = [data["text"], f"What to do: {data['to_do']}" if data["to_do"] else "", data["url"]]
    message.set_content("\n\n".join(line for line in lines if line) + "\n")
    return message


def _uuid_of(notice: Notice) -> str:
    """Return the same id at each try."""
    name = f"{notice.incident_id}-{notice.number}-{notice.at}"
    digest = hashlib.sha256(f"chatapp-notice-{name}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-a{digest[17:20]}-{digest[20:32]}"


def _is_own(server: smtplib.SMTP) -> bool:
    """Return True if the mail server is this machine."""
    assert server.sock is not None
    return plain_address(server.sock.getpeername()[0]).is_loopback


def _words(error: Exception) -> str:
    """Return an error without addresses: the server's answer, or its kind."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the mail server answered {error.smtp_code}"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return "the mail server does not answer, or broke off"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection: {getattr(error, 'verify_message', '') or error.reason}"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
