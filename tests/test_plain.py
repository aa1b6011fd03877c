"""What needs no session: static files, readiness, the address that the start prints, whose word on addresses counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from chatapp import create_app
from chatapp.accounts.keys import first_run_code
from chatapp.cli import _welcome
from chatapp.config import Settings, is_within, load
from chatapp.parts import Parts


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = create_app(Settings(data_dir=tmp_path))
    yield app
    app.extensions["chatapp"].store.close()


def test_static_files_are_kept_only_under_their_own_version(app: Flask) -> None:
    with app.test_request_context():
        context: dict[str, Any] = {}
        app.update_template_context(context)
        current = context["static"]("js/app.js")
    client = app.test_client()
    with client.get(current) as kept, client.get("/static/0123456789abcdef/js/app.js") as other:
        assert kept.status_code == other.status_code == 200 and kept.data == other.data
        assert {"immutable", "public"} <= set(kept.headers["Cache-Control"].split(", "))
        assert other.headers["Cache-Control"] == "no-store, no-transform", (
            "the old page gets the new file, and no cache keeps it"
        )


def test_a_database_that_fails_is_not_ready(app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = app.test_client()
    assert (client.get("/readyz").status_code, client.get("/readyz").json) == (200, {"ready": True})
    app.extensions["chatapp"].store.close()
    for name in ("chat.db", "chat.db-wal", "chat.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "chat.db").write_bytes(b"this is no database, whatever its name says " * 100)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json) == (503, {"ready": False, "reason": "failed"})
    assert "the database does not answer" in caplog.text
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("public_url", "prefix", "address"),
    [
        ("", "", "http://127.0.0.1:8080/"),
        ("", "/chat", "http://127.0.0.1:8080/chat/"),
        ("https://chat.example.org", "", "https://chat.example.org/"),
        ("https://example.org", "/chat", "https://example.org/chat/"),
        ("https://example.org/chat", "/chat", "https://example.org/chat/"),
    ],
)
def test_the_start_prints_where_it_is_found(tmp_path: Path, public_url: str, prefix: str, address: str) -> None:
    settings = Settings(data_dir=tmp_path, host="0.0.0.0", port=8080, public_url=public_url, url_prefix=prefix)
    parts: Parts = create_app(settings).extensions["chatapp"]
    assert f"serves on {address}\n" in _welcome(parts)
    assert f"open {address}first-run#code={first_run_code(tmp_path)} and" in _welcome(parts)
    parts.store.close()


@pytest.mark.parametrize("declared", ["10.0.0.0/8", "10.1.2.3", "::ffff:10.1.2.3"])
def test_a_declared_proxy_is_known_by_either_name_of_its_address(tmp_path: Path, declared: str) -> None:
    """A server that listens on :: sees IPv4 as ::ffff:10.1.2.3."""
    settings = load({"DATA_DIR": str(tmp_path), "CHATAPP_TRUSTED_PROXIES": declared})
    assert is_within(settings.trusted_proxies, "::ffff:10.1.2.3")
    assert is_within(settings.trusted_proxies, "10.1.2.3") or ":" in declared
    assert not any(is_within(settings.trusted_proxies, other) for other in ("::ffff:11.1.2.3", "x", ""))
