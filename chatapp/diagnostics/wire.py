"""The doctor's HTTP client: direct or by a forward proxy, one request at a time."""

import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, Self
from urllib.request import getproxies, proxy_bypass

import httpx

from chatapp.diagnostics.verdicts import END, MARK, TEST_HEADER

CONNECT_S = 8.0
ANSWER_S = 10.0  # for an answer that should come at once
REDIRECTS = (301, 302, 303, 307, 308)
HIGHEST_PORT = 65535
MOST_BYTES = 8 * 1024 * 1024  # of an answer: sixteen times the server's largest
# `identity`, so that sizes and arrivals are those of the transfer.
HEADERS = {TEST_HEADER: "1", "Cache-Control": "no-cache", "Accept": "*/*", "Accept-Encoding": "identity"}


class Unreachable(Exception):
    """An invalid address or session; the message says why."""


class NotSignedIn(Exception):
    """The sign-in failed; the message says why."""


@dataclass(frozen=True)
class Way:
    """The route to a server: its URL, a forward proxy's URL or "", and the trusted CAs."""

    site: httpx.URL
    prefix: str
    proxy: str = ""
    trust: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    @classmethod
    def to(cls, url: str, proxy: str | None = None) -> Self:
        """Make a route from a URL; `proxy`: None takes it from the environment. Raises Unreachable."""
        site = _parse_url(url)
        if proxy is None:
            proxy = "" if proxy_bypass(site.host) else getproxies().get(site.scheme, "")
        return cls(site, site.raw_path.partition(b"?")[0].decode().rstrip("/"), _parse_proxy(proxy))

    @property
    def origin(self) -> str:
        """The Origin that a browser would send."""
        return f"{self.site.scheme}://{self.site.netloc.decode()}"

    def url(self, path: str, scheme: str = "http") -> str:
        """Return the URL of a path; with the scheme `ws`, of a WebSocket."""
        return f"{self.site.scheme.replace('http', scheme)}://{self.site.netloc.decode()}{self.prefix}{path}"

    @property
    def trust_in_proxy(self) -> ssl.SSLContext | None:
        """The CAs for a proxy reached over TLS, else None."""
        return self.trust if self.proxy.startswith("https:") else None


def _parse_url(url: str) -> httpx.URL:
    """Parse a URL typed by a person. Raises Unreachable."""
    try:
        parts = httpx.URL(str(httpx.URL(url)))  # twice: after HTTP:// httpx does not drop the default port 80
        is_valid = bool(parts.host.encode("idna")) and (parts.port or 0) <= HIGHEST_PORT
    except (httpx.InvalidURL, UnicodeError):
        is_valid = False
    if not is_valid or parts.scheme not in ("http", "https"):
        raise Unreachable(f"{url!r} is not an address such as https://chat.example.org")
    return parts


def _parse_proxy(text: str) -> str:
    """Parse a forward proxy's host:port or URL. Raises Unreachable."""
    if not text:
        return ""
    try:
        url = _parse_url(text if "://" in text else f"http://{text}")
    except Unreachable:  # not quoted: it may contain a password
        raise Unreachable("the forward proxy is not an address such as proxy.example.org:3128") from None
    needs_password = url.userinfo and b":" not in url.userinfo
    userinfo = url.userinfo + b":" if needs_password else url.userinfo
    return str(url.copy_with(userinfo=userinfo, path="/", query=None, fragment=None))


@dataclass
class ProbeResponse:
    """An HTTP response or a failure; `at`: arrivals of its parts, in ms after the request."""

    error: str | None = None
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    text: str = ""
    at: list[int] = field(default_factory=list)
    ms: int = 0

    def on_trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow a request by httpx's `trace`: a failure before it is sent is not the server's."""
        if event == "http11.send_request_headers.started" and info["request"].method != b"CONNECT":
            self.error = "cut"
        elif event == "http11.receive_response_headers.complete":
            _, status, _, headers, *_ = info["return_value"]
            if self.error == "cut" or status >= 400:  # else a proxy's response to CONNECT
                self.status, self.headers = status, httpx.Headers(headers)

    def fail(self, problem: httpx.HTTPError) -> None:
        """Record the reason of an incomplete response."""
        if _is_tls(problem):
            self.error = "tls"
        elif isinstance(problem, httpx.TimeoutException):
            self.error = "hung" if self.error == "cut" else self.error
        elif self.status >= 300:  # complete without a body
            self.error = None

    @property
    def location(self) -> str:
        """The target of a redirect, without its query."""
        return self.headers.get("Location", "").partition("?")[0] if self.status in REDIRECTS else ""

    def facts(self, mark: str = MARK) -> dict[str, Any]:
        """Return the facts for the rules of any HTTP probe."""
        return {
            "error": self.error,
            "status": self.status,
            "redirected": self.status in REDIRECTS,
            "location": self.location,
            "marked": self.text.lstrip().startswith(mark),
            "complete": self.text.rstrip().endswith(END),
            "ms": self.ms,
        }


class ProbeClient:
    """The HTTP client for one session and one route, a new connection for each request, without following redirects."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._client = httpx.Client(
            verify=way.trust,
            proxy=httpx.Proxy(way.proxy, ssl_context=way.trust_in_proxy) if way.proxy else None,
            trust_env=False,  # the proxy is that of `way`
            event_hooks={"response": [lambda _: self._allow_plain_http()]},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        del self._client.headers["User-Agent"]  # some filters refuse libraries by their name

    def use(self, session: str) -> None:
        """Take the session from a cookie as name=value. Raises Unreachable."""
        name, _, value = session.strip().partition("=")
        if not (name and value and session.isascii() and session.strip().isprintable()):
            raise Unreachable("the session is the cookie as name=value, as developer tools show it")
        self._client.cookies.set(name, value)

    @property
    def cookie(self) -> str:
        """The Cookie header."""
        return str(self._client.build_request("GET", self.way.url("/")).headers.get("Cookie", ""))

    def _allow_plain_http(self) -> None:
        """Send Secure cookies over plain HTTP too, for a server tested directly, without its TLS proxy."""
        for cookie in self._client.cookies.jar:
            cookie.secure = False

    def get(
        self,
        path: str,
        within_s: float = ANSWER_S,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] = HEADERS,
    ) -> ProbeResponse:
        """Send a GET and read the response as it comes. A failure is in its `error`."""
        result, started, size, pieces = ProbeResponse("unreachable"), time.monotonic(), 0, []
        try:
            with self._client.stream(
                "GET",
                self.way.url(path),
                params=query,
                headers=headers,
                timeout=httpx.Timeout(within_s, connect=CONNECT_S),
                extensions={"trace": result.on_trace},
            ) as response:
                for piece in response.iter_bytes():
                    result.at.append(ms_since(started))
                    pieces.append(piece)
                    if time.monotonic() - started > within_s:
                        raise httpx.ReadTimeout("It comes too slowly.")
                    if (size := size + len(piece)) > MOST_BYTES:
                        raise httpx.ReadError("It is no answer of ours.")
            result.error = None
        except httpx.HTTPError as problem:
            result.fail(problem)
        result.text, result.ms = b"".join(pieces).decode("utf-8", "replace"), ms_since(started)
        return result

    def sign_in(self, email: str, password: str) -> None:
        """Sign in by the form. Raises NotSignedIn."""
        url, headers = self.way.url("/sign-in"), {"Origin": self.way.origin, "Accept": "text/html"}
        try:
            page = self._client.get(url)
            if page.status_code != 200:
                status = f"{page.status_code} {page.headers.get('Location', '')}".strip()
                raise NotSignedIn(f"{self.way.prefix}/sign-in answered {status}")
            tokens = [tag.get("value", "") for tag in tags(page.text, "input") if tag.get("name") == "csrf_token"]
            if not tokens:  # a foreign page must not get the password
                raise NotSignedIn(f"{self.way.prefix}/sign-in is not the sign-in page.")
            form = {"email": email, "password": password, "csrf_token": tokens[0]}
            answer = self._client.post(url, data=form, headers=headers)
        except httpx.HTTPError as problem:
            raise NotSignedIn(f"The sign-in page could not be read: {problem}") from problem
        if answer.status_code != 303:
            raise NotSignedIn(f"Signing in as {email} was answered {answer.status_code}.")


class _Tags(HTMLParser):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: Iterable[tuple[str, str | None]]) -> None:
        if tag == self._name:
            self.found.append({name: value or "" for name, value in attrs})


def tags(markup: str, name: str) -> list[dict[str, str]]:
    """Return the attributes of every tag of that name, in order."""
    parser = _Tags(name)
    parser.feed(markup)
    return parser.found


def ms_since(started: float) -> int:
    """Return the whole milliseconds since `started`, by the monotonic clock."""
    return round((time.monotonic() - started) * 1000)


def _is_tls(problem: BaseException | None) -> bool:
    """Return True if TLS caused the error."""
    while problem is not None and not isinstance(problem, ssl.SSLError):
        problem = problem.__cause__ or problem.__context__
    return problem is not None
