"""How the doctor reaches a server over HTTP: directly or by a forward proxy, one answer at a time."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

MARK, END = "<chat-test", "</chat-test>"
CONNECT_S = 8.0
ANSWER_S = 10.0  # for an answer that should come at once
REDIRECTS = (301, 302, 303, 307, 308)
HIGHEST_PORT = 65535
MOST_BYTES = 8 * 1024 * 1024  # of an answer: sixteen times the largest of ours
# Asked for as it is, so that what comes is measured, and not what it unpacks to.
HEADERS = {"X-Chatapp-Test": "1", "Cache-Control": "no-cache", "Accept": "*/*", "Accept-Encoding": "identity"}


class Unreachable(Exception):
    """Nothing can be asked with what was given; the message says why."""


class NotSignedIn(Exception):
    """The server did not let us in; the message says why."""


@dataclass(frozen=True)
class Way:
    """Where the server is, by way of a forward proxy where there is one, and whose certificates are believed."""

    site: httpx.URL
    prefix: str
    proxy: str = ""
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    @classmethod
    def to(cls, url: str, proxy: str | None = None) -> Way:
        """From the URL; the proxy of the environment's variables where none is named. Raises Unreachable."""
        site = _address(url)
        if proxy is None:
            proxy = "" if proxy_bypass(site.host) else getproxies().get(site.scheme, "")
        return cls(site, site.raw_path.partition(b"?")[0].decode().rstrip("/"), _proxy(proxy))

    @property
    def origin(self) -> str:
        """What a browser would send as Origin."""
        return f"{self.site.scheme}://{self.site.netloc.decode()}"

    def url(self, path: str, scheme: str = "http") -> str:
        """The address of a path; with the scheme `ws`, of a WebSocket."""
        return f"{self.site.scheme.replace('http', scheme)}://{self.site.netloc.decode()}{self.prefix}{path}"

    @property
    def trust_in_proxy(self) -> ssl.SSLContext | None:
        """For a proxy that is itself reached over TLS."""
        return self.trust if self.proxy.startswith("https:") else None


def _address(url: str) -> httpx.URL:
    """The address that people write. Raises Unreachable."""
    try:
        parts = httpx.URL(str(httpx.URL(url)))  # twice: after HTTP:// the port 80 is not known for its own
        is_one = bool(parts.host.encode("idna")) and (parts.port or 0) <= HIGHEST_PORT
    except (httpx.InvalidURL, UnicodeError):
        is_one = False
    if not is_one or parts.scheme not in ("http", "https"):
        raise Unreachable(f"{url!r} is not an address such as https://chat.example.org")
    return parts


def _proxy(text: str) -> str:
    """A forward proxy's URL from what people write: host:port, or a URL. Raises Unreachable."""
    if not text:
        return ""
    try:
        url = _address(text if "://" in text else f"http://{text}")
    except Unreachable:  # not repeated in words: it may hold a password
        raise Unreachable("the forward proxy is not an address such as proxy.example.org:3128") from None
    return str(url.copy_with(userinfo=_with_password(url.userinfo), path="/", query=None, fragment=None))


def _with_password(userinfo: bytes) -> bytes:
    """A name without a password has an empty one."""
    return userinfo if b":" in userinfo or not userinfo else userinfo + b":"


@dataclass
class Got:
    """An HTTP answer, or what became of it; `at` are the arrivals of its parts, in ms after the request."""

    error: str | None = None
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    text: str = ""
    at: list[int] = field(default_factory=list)
    ms: int = 0

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """See how far a request comes (httpx's `trace`): what fails before it is sent is no answer to it."""
        if event == "http11.send_request_headers.started" and info["request"].method != b"CONNECT":
            self.error = "cut"
        elif event == "http11.receive_response_headers.complete":
            _, status, _, headers, *_ = info["return_value"]
            if self.error == "cut" or status >= 400:  # else a proxy's consent to a tunnel
                self.status, self.headers = status, httpx.Headers(headers)

    def fail(self, problem: httpx.HTTPError) -> None:
        """Note why no whole answer came."""
        if _is_of_tls(problem):
            self.error = "tls"
        elif isinstance(problem, httpx.TimeoutException):
            self.error = "hung" if self.error == "cut" else self.error
        elif self.status >= 300:  # says what it has to say without a body
            self.error = None

    @property
    def location(self) -> str:
        """Where a redirect leads, without its query."""
        return self.headers.get("Location", "").partition("?")[0] if self.status in REDIRECTS else ""

    def facts(self, mark: str = MARK) -> dict[str, Any]:
        """What every rule may look at."""
        return {
            "error": self.error,
            "status": self.status,
            "redirected": self.status in REDIRECTS,
            "location": self.location,
            "marked": self.text.lstrip().startswith(mark),
            "complete": self.text.rstrip().endswith(END),
            "ms": self.ms,
        }


class Visitor:
    """One person's requests by one way, each on a connection of its own; redirects are not followed."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._client = httpx.Client(
            verify=way.trust,
            proxy=httpx.Proxy(way.proxy, ssl_context=way.trust_in_proxy) if way.proxy else None,
            trust_env=False,  # the way knows the proxy
            event_hooks={"response": [lambda _: self._take_cookies()]},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_keepalive_connections=0),  # so nothing is left to be closed
        )
        del self._client.headers["User-Agent"]  # no filter shall judge a library by its name

    def use(self, session: str) -> None:
        """Be the person of this session, given as name=value. Raises Unreachable."""
        name, _, value = session.strip().partition("=")
        if not (name and value and session.isascii() and session.strip().isprintable()):
            raise Unreachable("the session is the cookie as name=value, as developer tools show it")
        self._client.cookies.set(name, value)

    @property
    def cookie(self) -> str:
        """The Cookie header."""
        return str(self._client.build_request("GET", self.way.url("/")).headers.get("Cookie", ""))

    def _take_cookies(self) -> None:
        """A server behind a proxy that ends TLS is tested from beside it, too: its cookies go over plain HTTP there."""
        for cookie in self._client.cookies.jar:
            cookie.secure = False

    def get(
        self,
        path: str,
        within_s: float = ANSWER_S,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] = HEADERS,
    ) -> Got:
        """One GET, read as it comes. Failures are in its `error`."""
        got, started, size, pieces = Got("unreachable"), time.monotonic(), 0, []
        try:
            with self._client.stream(
                "GET",
                self.way.url(path),
                params=query,
                headers=headers,
                timeout=httpx.Timeout(within_s, connect=CONNECT_S),
                extensions={"trace": got.watch},
            ) as response:
                for piece in response.iter_bytes():
                    got.at.append(ms_since(started))
                    pieces.append(piece)
                    if time.monotonic() - started > within_s:
                        raise httpx.ReadTimeout("It comes too slowly.")
                    if (size := size + len(piece)) > MOST_BYTES:
                        raise httpx.ReadError("It is no answer of ours.")
            got.error = None
        except httpx.HTTPError as problem:
            got.fail(problem)
        got.text, got.ms = b"".join(pieces).decode("utf-8", "replace"), ms_since(started)
        return got

    def sign_in(self, email: str, password: str) -> None:
        """By the form. Raises NotSignedIn."""
        try:
            self._sign_in(email, password)
        except httpx.HTTPError as problem:
            raise NotSignedIn(f"The sign-in page could not be read: {problem}") from problem

    def _sign_in(self, email: str, password: str) -> None:
        page = self._client.get(self.way.url("/sign-in"))
        if page.status_code != 200:
            said = f"{page.status_code} {page.headers.get('Location', '')}".strip()
            raise NotSignedIn(f"{self.way.prefix}/sign-in answered {said}")
        tokens = [tag.get("value", "") for tag in tags(page.text, "input") if tag.get("name") == "csrf_token"]
        if not tokens:  # a foreign page: it gets no password
            raise NotSignedIn(f"{self.way.prefix}/sign-in is not the sign-in page.")
        form = {"email": email, "password": password, "csrf_token": tokens[0]}
        headers = {"Origin": self.way.origin, "Accept": "text/html"}
        answer = self._client.post(self.way.url("/sign-in"), data=form, headers=headers)
        if answer.status_code != 303:
            raise NotSignedIn(f"Signing in as {email} was answered {answer.status_code}.")


class _Tags(HTMLParser):
    """The attributes of every tag of one name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: Iterable[tuple[str, str | None]]) -> None:
        if tag == self._name:
            self.found.append({name: value or "" for name, value in attrs})


def tags(markup: str, name: str) -> list[dict[str, str]]:
    """The attributes of every tag of that name, in order."""
    reader = _Tags(name)
    reader.feed(markup)
    return reader.found


def ms_since(started: float) -> int:
    """Whole milliseconds since then, by the monotonic clock."""
    return round((time.monotonic() - started) * 1000)


def _is_of_tls(problem: BaseException | None) -> bool:
    """Whether TLS is behind an error."""
    while problem is not None and not isinstance(problem, ssl.SSLError):
        problem = problem.__cause__ or problem.__context__
    return problem is not None
