"""A small HTTP client that keeps cookies, as a browser without JavaScript would, plus the JSON and poll calls."""

import http.client
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from lab.elements import Element, parse
from lab.server import EMAIL, PASSWORD

JSON = {"Accept": "application/json"}


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read whole."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        return dict(json.loads(self.text))

    @property
    def page(self) -> Element:
        """The body as a tree."""
        return parse(self.text)


class Client:
    """One person at one address (`http://host:port`); not for use from several threads at once."""

    def __init__(self, url: str, timeout: float = 40.0) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.timeout = timeout
        self.cookies: dict[str, str] = {}
        self.token = ""
        self.epoch = ""

    def clone(self, timeout: float | None = None) -> "Client":
        """The same session in another thread's hands."""
        copy = Client(self.url, self.timeout if timeout is None else timeout)
        copy.cookies, copy.epoch, copy.token = dict(self.cookies), self.epoch, self.token
        return copy

    @property
    def cookie_header(self) -> str:
        """The Cookie header it sends."""
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def request(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own; OSError where the network fails. Redirects are not followed."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        sent = {"Connection": "close"} | ({"Cookie": self.cookie_header} if self.cookies else {})
        try:
            connection.request(method, path, body, sent | dict(headers or {}))
            response = connection.getresponse()
            text = response.read().decode()
        except http.client.HTTPException as problem:
            raise ConnectionError(repr(problem)) from problem
        finally:
            connection.close()
        self._keep_cookies(response.msg)
        return Answer(response.status, response.msg, text)

    def _keep_cookies(self, headers: http.client.HTTPMessage) -> None:
        for line in headers.get_all("Set-Cookie") or []:
            pair, *attributes = line.split(";")
            name, _, value = pair.strip().partition("=")
            if value and not any(a.strip().lower() == "max-age=0" for a in attributes):
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """A GET; redirects within the site are followed, five at most."""
        for _ in range(5):
            answer = self.request("GET", path, headers=headers)
            if answer.status not in (301, 302, 303, 307):
                return answer
            target = urlsplit(answer.headers["Location"])
            path = target.path + (f"?{target.query}" if target.query else "")
        raise AssertionError(f"too many redirects, last to {path}")

    def post(self, path: str, headers: Mapping[str, str] | None = None, **fields: str) -> Answer:
        """A form POST with the CSRF token and, like a browser's, an Origin; the answer as it is."""
        form = urlencode({"csrf_token": self.token} | fields)
        typed = {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.url} | dict(headers or {})
        return self.request("POST", path, form, typed)

    def learn(self, page: Element) -> Element:
        """Takes the CSRF token and the epoch out of a page."""
        for meta in page.all("meta", name="csrf-token"):
            self.token = meta.get("content")
        if not self.token:
            self.token = page.one("input", name="csrf_token").get("value")
        for body in page.all("body"):
            self.epoch = body.get("data-epoch", self.epoch)
        return page

    def sign_in(self, email: str = EMAIL, password: str = PASSWORD) -> "Client":
        """Signs in by the form; AssertionError if the server does not let us in."""
        self.learn(self.get("/sign-in").page)
        answer = self.post("/sign-in", email=email, password=password)
        assert answer.status in (302, 303), f"sign-in answered {answer.status}: {answer.text[:500]}"
        self.learn(self.get("/").page)
        assert self.epoch, "the page after sign-in carries no data-epoch"
        return self

    def create(self, body: str = "", conversation: str = "", client_id: str = "") -> Answer:
        """A new conversation with its first message, by JSON."""
        names = {"id": conversation or str(uuid.uuid4()), "client_id": client_id or str(uuid.uuid4())}
        return self.post("/c", JSON, **names, body=body)

    def post_message(self, conversation: str, body: str, client_id: str = "") -> Answer:
        """One message, by JSON."""
        return self.post(f"/c/{conversation}/messages", JSON, client_id=client_id or str(uuid.uuid4()), body=body)

    def open(self, conversation: str) -> Element:
        """The page of a conversation."""
        answer = self.get(f"/c/{conversation}")
        assert answer.status == 200, f"{answer.status} for /c/{conversation}"
        return self.learn(answer.page)

    def poll(
        self, cursors: Mapping[str, int], wait: float = 0, epoch: str | None = None, is_short: bool = False
    ) -> Answer:
        """One poll from these cursors."""
        epoch = self.epoch if epoch is None else epoch
        query = [("epoch", epoch)] + [("c", f"{feed}:{n}") for feed, n in cursors.items()] + [("wait", f"{wait:g}")]
        query += [("short", "1")] if is_short else []
        return self.request("GET", f"/changes?{urlencode(query)}")

    def history(self, conversation: str) -> list[Element]:
        """Every article of a conversation, oldest first, by the page and then older fragments."""
        found = self.open(conversation).one(id="messages").all("article", css_class="message")
        articles = [article for article in found if article.has("data-position")]
        while articles:
            before = min(article.number("data-position") for article in articles)
            answer = self.get(f"/c/{conversation}/messages?before={before}")
            older = answer.page.all("article", css_class="message")
            if not older:
                break
            articles = older + articles
        return articles
