"""The diagnostics bundle: nothing planted anywhere comes out of it, its sums are right, operators and shells only."""

import hashlib
import io
import json
import os
import re
import sqlite3
import stat
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

import pytest
from lab.http import JSON, Client
from lab.people import add_people, signed_in, unconfirm
from lab.server import EMAIL, NAME, PASSWORD, ROOT, Server, run_chatapp

from chatapp.config import describe, load
from chatapp.diagnostics import bundle as bundles
from chatapp.diagnostics import pseudonyms
from chatapp.diagnostics.bundle import BadBundle, period_ms, read_bundle
from chatapp.diagnostics.pseudonyms import Pseudonyms
from chatapp.parts import Parts
from chatapp.store import ConnectionEvent

StartServer = Callable[..., Server]
FILES = {
    *("manifest.json", "events.jsonl", "minutes.jsonl", "hours.jsonl", "drills.jsonl", "workers.json", "config.json"),
    *("versions.txt", "report.html"),
}
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"


def download(client: Client, since: str = "24h") -> dict[str, bytes]:
    """The checked files of a bundle, by the page."""
    client.learn(client.get("/").page)
    connection = HTTPConnection(client.host, client.port, timeout=60)
    headers = {"Cookie": client.cookie_header, "Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({"since": since, "csrf_token": client.token})
    connection.request("POST", "/monitor/diagnostics", body, headers)
    answer = connection.getresponse()
    data = answer.read()
    assert answer.status == 200, data[:500]
    assert answer.headers["Content-Type"] == "application/zip"
    assert ".zip" in answer.headers["Content-Disposition"]
    connection.close()
    return read_bundle(io.BytesIO(data))


def lines(files: dict[str, bytes], name: str) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in files[name].decode().splitlines()]


def report(client: Client, *events: dict[str, Any]) -> int:
    """Report events of a page, as its client does."""
    return client.post(
        "/connection/events", JSON, events=json.dumps(list(events)), now=str(round(time.time() * 1000))
    ).status


def plant_figures(server: Server, figures: dict[str, Any]) -> None:
    """Figures as a client's words make them, of minutes and hours."""
    start = round(time.time() * 1000) // 3_600_000 * 3_600_000
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as db:
        for span in ("m", "h"):
            db.execute(
                "INSERT OR REPLACE INTO rollups (span, start, data) VALUES (?, ?, ?)",
                (span, start, json.dumps(figures)),
            )
        db.commit()


def test_nothing_planted_comes_out(start_server: StartServer) -> None:
    """Texts, titles, names, addresses, cookies, keys, tokens, settings: in no file, as they are or escaped."""
    secrets = {
        "openai_api_key": "sk-CANARYsettingkey1",
        "openai_base_url": "http://canaryhost1.invalid/v1",
        "openai_model": "canary-model-1",
        "openai_system_prompt": "canary prompt one",
        "public_url": "http://canaryuser1:canarypass1@chat.kept.example",
        "allowed_origins": "http://canaryorigin1.invalid",
        "trusted_proxies": "127.0.0.1,203.0.113.77",
    }
    server = start_server(assistant="off", **secrets)
    (grace,) = add_people(server, "canarymail1@example.org")
    me, other = Client(server.url).sign_in(), signed_in(server, "canarymail1@example.org")
    conversation = me.create("canarybody1 in a message").json["conversation"]
    me.post(f"/c/{conversation}/title", JSON, title="canarytitle1")
    client_id = str(uuid.uuid4())
    planted = {
        "client": client_id,
        "number": 1,
        "at": round(time.time() * 1000),
        "type": "canarytype1",
        "from": "canaryfrom1",
        "to": "canaryto1",
        "reason": "canaryreason1",
        "transport": "canarytr1",
        "data": {
            "canarykey1": "x",
            "rtt": "canaryrtt1",
            "network": "canarynet1",
            "trigger": ["canarylist1", {"canarydeep1": 1}],
            "sent": {"canarysent1": {"5": 1}, "websocket": {"5": 2}},
            "address": "198.51.100.99",
        },
    }
    state = planted | {"number": 2, "type": "state", "from": "connecting", "to": "polling", "data": {"rtt": 12}}
    failed = planted | {
        "number": 3,
        "type": "attempt",
        "transport": "websocket",
        "data": {"outcome": "failed", "ms": 5},
    }
    for agent in (AGENT, "canaryagent1/1.0"):
        other.clone().request(
            "POST",
            "/connection/events",
            urlencode({"events": json.dumps([planted | {"client": str(uuid.uuid4())}]), "csrf_token": other.token}),
            JSON
            | {
                "User-Agent": agent,
                "Content-Type": "application/x-www-form-urlencoded",
                "X-Forwarded-For": "198.51.100.98",
            },
        )
    assert report(me, planted, state, failed) == 204
    run_chatapp(server, "drill", "start", "delay", "--seconds", "5", "--person", EMAIL, "--no-wait")
    assert run_chatapp(server, "drill", "stop").returncode == 0
    plant_figures(server, {"refusals": {"websocket canaryreason1": 1}, "drops": {"canaryreason1": 2, "mute": 1}})
    time.sleep(6)  # the workers' rows
    ticket = me.request("GET", "/connection/test/mark?ticket=1").text.split('ticket="')[1].split('"')[0]
    files = download(me)
    assert set(files) == FILES
    with closing(sqlite3.connect(server.data / "chat.db")) as db:
        stored = [str(value) for row in db.execute("SELECT token_hash, uuid FROM sessions") for value in row]
        stored += [row[0] for row in db.execute("SELECT password_hash FROM people WHERE password_hash IS NOT NULL")]
        stored += [row[0] for row in db.execute("SELECT uuid FROM people")]
        stored += [row[0] for row in db.execute("SELECT uuid FROM messages")]
    with closing(sqlite3.connect(server.data / "metrics.db")) as db:
        stored += [row[0] for row in db.execute("SELECT DISTINCT network FROM connection_events WHERE network != ''")]
        stored += [row[0] for row in db.execute("SELECT worker FROM worker_rows")]
    keys = [(server.data / name).read_text().strip() for name in ("secret-key", "instance")]
    canaries = [
        "canary", "CANARY", NAME, EMAIL, PASSWORD, conversation, client_id, grace, ticket, me.token,
        "198.51.100", "203.0.113", *keys, *stored, *me.cookies.values(), *other.cookies.values(), str(server.data),
    ]  # fmt: skip
    for name, data in files.items():
        text = data.decode()
        for canary in canaries:
            assert canary not in text, f"{canary} in {name}"
    assert "http://chat.kept.example" in files["config.json"].decode(), "a wrong PUBLIC_URL is what many faults are"
    for name in ("minutes.jsonl", "hours.jsonl"):
        drops = sum((Counter(row.get("drops", {})) for row in lines(files, name)), Counter())
        assert drops == {"other": 2, "mute": 1}, name  # a minute may have ended between them
    kinds = {row["type"] for row in lines(files, "events.jsonl")}
    assert {"state", "attempt", "other", "server-start"} <= kinds


def test_it_says_what_happened_under_stable_pseudonyms(server: Server) -> None:
    me = Client(server.url).sign_in()
    page, now = str(uuid.uuid4()), round(time.time() * 1000)
    about = {"client": page, "at": now, "transport": "polling", "reason": "upgrade-refused"}
    states = [
        about | {"number": n, "type": "state", "from": a, "to": b, "data": {"rtt": n, "attempts": 0}}
        for n, (a, b) in enumerate((("disconnected", "connecting"), ("connecting", "polling")))
    ]
    assert report(me, *states) == 204
    first, second = download(me), download(me)
    rows = [row for row in lines(first, "events.jsonl") if row["type"] == "state"]
    assert [(row["from"], row["to"], row["reason"], row["data"]) for row in rows] == [
        ("disconnected", "connecting", "upgrade-refused", {"rtt": 0, "attempts": 0}),
        ("connecting", "polling", "upgrade-refused", {"rtt": 1, "attempts": 0}),
    ]
    (client,) = {row["client"] for row in rows}
    assert client.startswith("page-") and {row["page"] for row in rows} == {client}
    again = [row for row in lines(second, "events.jsonl") if row["type"] == "state"]
    assert again[0]["client"] != client, "of no use outside its bundle"
    manifest = json.loads(first["manifest.json"])
    assert (manifest["schema"], manifest["product"], manifest["is_cut"]) == (1, "chatapp", False)
    assert {one["name"] for one in manifest["files"]} == FILES - {"manifest.json"}
    for one in manifest["files"]:
        data = first[one["name"]]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (one["bytes"], one["sha256"])
        assert "rows" not in one or one["rows"] == len(data.splitlines())
    text = first["report.html"].decode()
    assert "<script" not in text and "href=" not in text and "src=" not in text and "the upgrade to WebSocket" in text
    assert b"Python " in first["versions.txt"] and b"\nflask " in first["versions.txt"].lower()


def test_an_altered_one_is_refused(parts: Parts) -> None:
    with parts.bundler.make(period_ms("1h")) as file:
        whole = file.read()
    assert set(read_bundle(io.BytesIO(whole))) == FILES
    for change in ("alter", "drop", "add"):
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(changed, "w") as new:
            for name in old.namelist():
                if (change, name) != ("drop", "config.json"):
                    data = old.read(name)
                    new.writestr(name, data + b" " if (change, name) == ("alter", "versions.txt") else data)
            if change == "add":
                new.writestr("more.txt", "x")
        with pytest.raises(BadBundle):
            read_bundle(changed)
    for wrong in (b"", b"no zip", whole[:-30]):
        with pytest.raises(BadBundle):
            read_bundle(io.BytesIO(wrong))


def test_its_size_is_bounded_by_the_newest_events(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MOST_EVENTS", 30)
    now = round(time.time() * 1000)
    events = [
        ConnectionEvent(str(uuid.uuid4()), n, "", "alive", None, None, None, None, now - 1000 * n, "{}")
        for n in range(100)
    ]
    parts.store.events.add(events)
    with parts.bundler.make(period_ms("1h")) as file:
        files = read_bundle(file)
    ages = [row["number"] for row in lines(files, "events.jsonl")]
    assert ages == sorted(range(30), reverse=True)
    assert json.loads(files["manifest.json"])["is_cut"] is True


def test_who_may(start_server: StartServer) -> None:
    """Operators who entered their password lately; for others there is no such page. It is in the audit."""
    server = start_server(assistant="off")
    add_people(server, "grace@example.org")
    stranger, grace, me = Client(server.url), signed_in(server, "grace@example.org"), Client(server.url).sign_in()
    for client in (stranger, grace):
        assert client.request("GET", "/monitor/diagnostics").status == 404
        assert client.request("POST", "/monitor/diagnostics", "since=1h").status == 404
    assert me.request("POST", "/monitor/diagnostics", "since=1h").status in (400, 403), "without the form's token"
    unconfirm(server)
    assert "Download" not in me.get("/monitor/diagnostics").text
    assert me.post("/monitor/diagnostics", since="1h").headers["Location"].startswith("/account/confirm")
    assert me.post("/account/confirm", password=PASSWORD, next="/monitor/diagnostics").status == 303
    assert "Download" in me.get("/monitor/diagnostics").text
    assert me.post("/monitor/diagnostics", since="never").status == 422
    download(me, "1h")
    assert "diagnostics bundle made" in me.get("/audit").text


def test_the_command(server: Server, tmp_path: os.PathLike[str]) -> None:
    out = os.path.join(tmp_path, "bundle.zip")
    done = run_chatapp(server, "diagnostics", "--since", "90m", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": out, "bytes": os.path.getsize(out)}
    assert stat.S_IMODE(os.stat(out).st_mode) == 0o600
    with open(out, "rb") as file:
        manifest = json.loads(read_bundle(file)["manifest.json"])
    assert manifest["until"] - manifest["since"] == 90 * 60_000
    wrong = run_chatapp(server, "diagnostics", "--since", "5 weeks")
    assert wrong.returncode == 1 and "--since" in wrong.stderr
    nowhere = run_chatapp(server, "diagnostics", "--out", "/nowhere/x.zip")
    assert nowhere.returncode == 1 and "/nowhere/x.zip" in nowhere.stderr
    assert "diagnostics bundle made" in Client(server.url).sign_in().get("/audit").text


def test_settings_show_no_text_that_is_not_known() -> None:
    environ = {
        "CHATAPP_PUBLIC_URL": "https://a:b@chat.example.org",
        "CHATAPP_ADMIN_NAME": "123456",
        "CHATAPP_ADMIN_EMAIL": "ada@example.org",
        "CHATAPP_ADMIN_PASSWORD": "long enough 77",
        "HOST": "192.0.2.7",
        "CHATAPP_WORKERS": "3",
        "CHATAPP_TRANSPORTS": "polling",
    }
    settings = load(environ)
    shown = {
        row["name"]: row["value"] for row in (pseudonyms.setting(one, settings) for one in describe(settings, environ))
    }
    assert shown["CHATAPP_PUBLIC_URL"] == "https://chat.example.org"
    assert (shown["CHATAPP_WORKERS"], shown["CHATAPP_TRANSPORTS"]) == ("3", "polling")
    assert {shown[f"CHATAPP_{name}"] for name in ("ADMIN_NAME", "ADMIN_EMAIL", "ADMIN_PASSWORD", "HOST")} == {"(set)"}
    assert shown["CHATAPP_DATA_DIR"] == "(default)"


def test_pseudonyms_tell_kinds_apart_and_counts_stay() -> None:
    names = Pseudonyms()
    assert names.of("person", "x") == names.of("person", "x") != names.of("page", "x").replace("page", "person")
    assert names.of("person", "") == "" and len(names.of("network", "x")) == 12
    assert pseudonyms.figures({"one": 1, "two": 2, "mute": 3}) == {"other": 3, "mute": 3}
    assert pseudonyms.figures({"polling": {"12": 4}, "websocket x y": 5}) == {
        "polling": {"12": 4},
        "websocket other": 5,
    }
    assert pseudonyms.figures([1, "text", {"x": "text"}]) == [1, 0, {"other": 0}]


def test_every_type_that_pages_report_is_known() -> None:
    """Else its events would read "other" in bundles."""
    core = ROOT / "static/js/connection"
    reported = {kind for path in core.glob("*.js") for kind in re.findall(r'[#.]report\("([a-z-]+)"', path.read_text())}
    assert len(reported) > 8 and reported <= pseudonyms.TYPES
