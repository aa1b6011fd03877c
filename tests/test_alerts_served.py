"""Alerts on a real server: from events of pages to the banner, the Operations conversation, the incident's page."""

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from flask import Flask
from lab.elements import Element
from lab.http import JSON, Client
from lab.people import add_people, database, signed_in, value
from lab.processes import wait_for
from lab.server import EMAIL, Server
from test_alert_channels import HookServer
from test_alert_channels import hook as hook

from chatapp.bus import Bus
from chatapp.store import ConnectionEvent, Store, now_ms

StartServer = Callable[..., Server]
MINUTE = 60_000
LOOK_S = 25.0  # a look of the rules comes each 15 s


@contextmanager
def measures(server: Server) -> Iterator[sqlite3.Connection]:
    """The metrics database, as a shell sees it."""
    with closing(sqlite3.connect(server.data / "metrics.db", timeout=20)) as connection:
        yield connection
        connection.commit()


def say(server: Server, states: dict[str, tuple[str, str | None]]) -> None:
    """Each page reports its state, and why."""
    store = Store(Flask("test"), server.data, Bus())
    now = now_ms()
    events = [
        ConnectionEvent(
            str(uuid.uuid5(uuid.NAMESPACE_URL, page)),
            now % 1_000_000_000,
            str(uuid.uuid5(uuid.NAMESPACE_DNS, page)),
            "state",
            None,
            "connecting",
            state,
            reason,
            now,
            json.dumps({}),
            page=str(uuid.uuid5(uuid.NAMESPACE_URL, page)),
            network="a1b2c3d4e5f6" if reason else "0f0f0f0f0f0f",
            agent="Firefox on Windows",
        )
        for page, (state, reason) in states.items()
    ]
    store.events.add(events)
    newest = now - now % MINUTE - MINUTE
    store.measures.put("m", {newest: {}})  # the server need not run for a minute first
    store.close()


def state_of(server: Server, rule: str) -> str:
    with measures(server) as connection:
        row = connection.execute("SELECT state FROM alerts WHERE rule = ?", (rule,)).fetchone()
    return str(row[0]) if row else ""


def hurry(server: Server, rule: str) -> None:
    """Its state began an hour earlier."""
    with measures(server) as connection:
        connection.execute("UPDATE alerts SET since = since - 3600000 WHERE rule = ?", (rule,))


def operations(client: Client) -> str:
    """The Operations conversation in a person's list; "" for none."""
    page = client.poll({"list": 0}).page
    found = [row for row in page.all("li") if "Operations" in row.text]
    links = [link.get("href") for link in found[0].all("a")] if found else []
    return links[0].rsplit("/", 1)[1] if links else ""


def told(client: Client, conversation: str) -> list[Element]:
    return client.poll({conversation: 0}).page.all("article")


def test_from_the_events_of_pages_to_a_message_that_all_operators_read(start_server: StartServer) -> None:
    server = start_server(assistant="builtin", workers=2)
    add_people(server, "olga@example.org", operator=True)
    add_people(server, "grace@example.org")
    ada, olga, grace = (signed_in(server, one) for one in (EMAIL, "olga@example.org", "grace@example.org"))
    pages = {f"p{number}": ("polling", "upgrade-refused") if number < 5 else ("connected", None) for number in range(8)}
    say(server, pages)
    wait_for(lambda: state_of(server, "polling-share") == "pending", LOOK_S, "a look of the rules")
    hurry(server, "polling-share")
    server.restart()  # in the midst of it
    ada, olga, grace = (signed_in(server, one) for one in (EMAIL, "olga@example.org", "grace@example.org"))
    # Its list is read again and again: another worker may answer, which learns of it a moment later.
    conversation = str(wait_for(lambda: operations(olga), LOOK_S, "the Operations conversation"))

    # Everybody who operates reads it, on the way of all messages; nobody answers it
    wait_for(lambda: operations(ada) == conversation, LOOK_S, "the same conversation")
    assert operations(grace) == ""
    (message,) = told(olga, conversation)
    assert message.get("data-author") == "assistant" and message.get("data-state") == "completed"
    words = message.one(css_class="body").text
    assert "5 of 8 people poll: in network a1b2 the upgrade to WebSocket is refused" in words
    assert "HTTP/1.1" in words, "the remedy"
    assert value(server, "SELECT count(*) FROM runs") == 0
    assert grace.request("GET", f"/c/{conversation}").status == 404

    # The banner
    banner = ada.get("/monitor").page.one(css_class="alerts")
    (row,) = [one for one in banner.all("li") if one.has("data-rule")]
    assert (row.get("data-rule"), row.get("data-state")) == ("polling-share", "firing")
    path = "/monitor/alerts/polling-share"
    assert grace.post(f"{path}/acknowledge").status == 404
    assert ada.post(f"{path}/acknowledge").status == 303
    assert "Ada Admin takes care" in ada.get("/monitor").page.one(css_class="alerts").text
    assert ada.post(f"{path}/silence", hours="7").status == 422
    assert ada.post(f"{path}/silence", hours="1").status == 303
    assert "silent until" in ada.get("/monitor").page.one(css_class="alerts").text
    assert ada.post(f"{path}/silence", hours="0").status == 303
    for wrong in ("never", "mass-drop"):
        assert ada.post(f"/monitor/alerts/{wrong}/acknowledge").status == 404
    assert ada.request("POST", f"{path}/acknowledge", headers=JSON).status == 400, "without the form's token"
    assert {"took care of an alert", "alert silenced"} <= {one.text for one in ada.get("/audit").page.all("strong")}

    # Somebody deleted it; one operator is none any more
    assert ada.post(f"/c/{conversation}/delete").status in (200, 204, 303)
    with database(server) as connection:
        connection.execute("UPDATE people SET is_operator = 0 WHERE email = 'olga@example.org'")
    say(server, {page: ("connected", None) for page in pages})
    wait_for(lambda: state_of(server, "polling-share") == "recovering", LOOK_S, "recovery")
    hurry(server, "polling-share")
    another = str(wait_for(lambda: operations(ada).replace(conversation, ""), LOOK_S, "another one"))
    (message,) = told(ada, another)
    assert "5 of 8 people polled: in network a1b2" in message.one(css_class="body").text
    wait_for(lambda: operations(olga) == "", LOOK_S, "it is gone from the list")

    incidents = ada.get("/monitor/incidents").page.one(css_class="incidents")
    (incident,) = [one for one in incidents.all("li") if one.has("data-closed")]
    assert incident.get("data-closed") == "yes" and "From " in incident.text
    steps = [one.text for one in incident.one(css_class="changes").all("li")]
    for word in (
        "normal → pending",
        "pending → firing (62.5 % of 8)",
        "acknowledged",
        "silenced",
        "recovering → resolved",
    ):
        assert any(word in step for step in steps), (word, steps)
    assert not ada.get("/monitor").page.all(css_class="alerts")
    with measures(server) as connection:
        assert connection.execute("SELECT count(*), count(sent_at), max(tries) FROM notices").fetchone() == (2, 2, 1)
    assert grace.request("GET", "/monitor/incidents").status == 404


def test_a_locked_database_is_told_by_webhook_at_once_and_in_the_conversation_afterwards(
    start_server: StartServer, hook: HookServer
) -> None:
    """The server mends itself as soon as the lock is gone; the conversation has both messages, in their order."""
    server = start_server(assistant="off", alert_webhook=hook.url, alert_webhook_secret="key")
    ada = signed_in(server, EMAIL)
    mine = ada.create("hello").json["conversation"]
    with closing(sqlite3.connect(server.data / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert ada.post_message(mine, "cannot be stored").status == 503
        wait_for(lambda: state_of(server, "unready") == "pending", LOOK_S, "a look of the rules")
        hurry(server, "unready")
        wait_for(lambda: hook.got, LOOK_S, "the webhook")
        assert json.loads(hook.got[0][3])["text"].endswith("the server is not ready: the database cannot be written.")
        other.execute("ROLLBACK")
    with measures(server) as connection:
        connection.execute("UPDATE notices SET next_at = 1 WHERE sent_at IS NULL AND channel = 'operations'")
    wait_for(lambda: state_of(server, "unready") == "recovering", LOOK_S, "recovery")
    hurry(server, "unready")
    wait_for(lambda: len(hook.got) == 2, LOOK_S, "the end")
    conversation = str(wait_for(lambda: operations(ada), LOOK_S, "the Operations conversation"))
    wait_for(lambda: len(told(ada, conversation)) == 2, LOOK_S, "both messages")
    first, second = (one.one(css_class="body").text for one in told(ada, conversation))
    assert first.startswith("Alert. Since ") and second.startswith("Over. From ")
    assert ada.post_message(mine, "is stored").status == 201
