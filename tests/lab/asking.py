"""Asks the product's own OpenAI-compatible provider, without a server of ours around it."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatapp.assistant import ProviderError, make_provider
from chatapp.assistant.knowledge import Knowledge
from chatapp.assistant.markdown import GrowingAnswer
from chatapp.config import Settings, load
from chatapp.store import Turn
from lab.model import Script, Scripted

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")

Play = Callable[..., Scripted]


def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy or authority of this machine stands between a test and its server."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextmanager
def playing() -> Iterator[Play]:
    """What starts scripted servers, given their scripts; they end with the block."""
    servers: list[Scripted] = []

    def start(*scripts: Script, certificate: Path | None = None) -> Scripted:
        server = Scripted(*scripts)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.scheme = "https"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@dataclass
class Told:
    """What came of asking: the text, and the sentence where it failed, with what is shown instead."""

    text: str
    failure: str
    seconds: float
    instead: str = ""


def settings_for(server: Scripted, **others: str) -> Settings:
    """The settings, read as the product reads them."""
    return load({f"CHATAPP_{name.upper()}": value for name, value in (server.settings | others).items()})


def ask(server: Scripted, *turns: Turn, folders: Sequence[Path] = (), **others: str) -> Told:
    """One question to the provider itself. `folders`: of documents."""
    provider = make_provider(settings_for(server, **others), Knowledge(folders))
    started, text, failure, instead = time.monotonic(), "", "", ""
    try:
        for piece in provider.answer(turns or (Turn("user", "Hello?"),)):
            text += piece
    except ProviderError as error:
        failure, instead = str(error), error.instead
    return Told(text, failure, time.monotonic() - started, instead)


def answer_html(markdown: str) -> list[str]:
    """The blocks of an answer that came whole."""
    answer = GrowingAnswer()
    answer.feed(markdown)
    answer.finish()
    return [html for _, html in answer.changed()]
