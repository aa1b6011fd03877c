"""One connection for all tabs of a person in one browser, whichever transport it is (issue 4)."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab.browser import messages, new_page, record, sign_in, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.peer import WebSocketPeer
from lab.server import PASSWORD, Server, run_chatapp
from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser
StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
TABS = 10


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser of somebody's own, with room for many tabs."""
    page = new_page(browser)
    yield page.context
    page.context.close()


def open_tabs(context: BrowserContext, url: str, count: int) -> list[Page]:
    """So many tabs of one conversation that exists."""
    first = context.pages[0]
    sign_in(first, url)
    wait_state(first, "connected", "polling")
    say(first, "the first message")
    wait_for(first, lambda: [m["state"] for m in messages(first)] == ["sent"], 10, "it is sent")
    first.wait_for_url("**/c/*")
    tabs = [first]
    for _ in range(count - 1):
        tab = context.new_page()
        tab.goto(first.url)
        tabs.append(tab)
    for tab in tabs:
        wait_state(tab, "connected", "polling")
    return tabs


def say(page: Page, text: str) -> float:
    """Says it at once; when, in seconds."""
    said: float = page.evaluate("text => window.lab.say(text)", text)
    return said / 1000


def texts(page: Page, author: str = "user") -> list[str]:
    return [m["text"] for m in messages(page) if m["author"] == author]


def live_sockets(page: Page) -> int:
    """WebSockets that this tab has open."""
    return len([one for one in record(page, "sockets") if one["opened"] and not one["closed"]])


def holders(tabs: list[Page]) -> list[Page]:
    return [tab for tab in tabs if live_sockets(tab)]


def holder(tabs: list[Page]) -> Page:
    """The tab that has the connection, once there is exactly one."""
    wait_for(tabs[0], lambda: len(holders(tabs)) == 1, 5, "one tab holds the connection")
    return holders(tabs)[0]


def server_events(server: Server) -> list[tuple[str, dict[str, Any]]]:
    """What the server saw of WebSockets: type and data, in order."""
    with sqlite3.connect(server.data / "metrics.db") as database:
        query = "select type, data from connection_events where type like 'server-%' order by id"
        return [(kind, json.loads(data)) for kind, data in database.execute(query)]


def shown_at(page: Page, text: str, timeout: float = 10) -> float:
    """When a message with this text was first in the log, in seconds of the page's clock; waits for it."""
    look = """text => [...document.querySelectorAll("#messages article")]
      .filter(one => one.querySelector(".body").textContent.trim() === text)
      .map(one => window.lab.articles[one.dataset.clientId]?.first)[0]"""
    return float(wait_for(page, lambda: page.evaluate(look, text), timeout, f"{text!r} is shown")) / 1000


def silence(page: Page, seconds: float) -> None:
    """The tab's only thread stands still, as in a debugger: nothing of it runs, and the browser does not know."""
    script = f"setTimeout(() => {{ const end = Date.now() + {seconds * 1000}; while (Date.now() < end); }}, 30)"
    page.evaluate(script)


def freeze(page: Page) -> None:
    """As the browser freezes a tab: it is told, and then nothing of it runs (headless pages are all visible, and
    Chromium freezes only hidden ones)."""
    page.evaluate("document.dispatchEvent(new Event('freeze'))")
    silence(page, 5)


def test_ten_tabs_share_one_connection(
    start_server: StartServer, start_proxy: StartProxy, context: BrowserContext
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    tabs = open_tabs(context, proxy.url, TABS)
    holder(tabs)
    assert proxy.sockets == 1
    assert sum(len(record(tab, "sockets")) for tab in tabs[1:]) == 0, "no later tab ever tried"
    since = time.time()
    for number in (7, 0, 4):
        said = say(tabs[number], f"from tab {number}")
        late = [shown_at(tab, f"from tab {number}") - said for tab in tabs]
        assert max(late) < 1, late
    expected = ["the first message", "from tab 7", "from tab 0", "from tab 4"]
    for tab in tabs:
        wait_for(tab, lambda tab=tab: texts(tab) == expected, 5, "all tabs show all, once, in order")
        assert record(tab, "errors") == []
    paths = [one.path for one in proxy.requests if one.at > since]  # the service worker's, too, and reports
    assert [path for path in paths if path in ("/ws", "/changes") or path.endswith("/messages")] == []
    opened = [kind for kind, _ in wait_for(tabs[0], lambda: server_events(server), 5, "events")]
    pages = 1 + TABS  # the empty page after the sign-in became the first conversation's page without a load
    assert opened.count("server-open") - opened.count("server-close") == 1, f"{opened} after {pages} pages"


def test_ten_tabs_share_one_poll(start_server: StartServer, start_proxy: StartProxy, context: BrowserContext) -> None:
    """HTTP/1.1 gives a browser six connections to a host: ten held polls would starve all else."""
    server = start_server(assistant="off", transports="polling")
    proxy = start_proxy(server)
    tabs = open_tabs(context, proxy.url, TABS)
    for number in (9, 0):
        said = say(tabs[number], f"from tab {number}")
        late = [shown_at(tab, f"from tab {number}") - said for tab in tabs]
        assert max(late) < 1, late
    held = [one for one in proxy.seen("/changes") if not one.ended_at]
    wait_for(tabs[0], lambda: len([one for one in proxy.seen("/changes") if not one.ended_at]) <= 1, 3, "one poll")
    assert len(held) <= 2, "one poll, and perhaps its heartbeat"
    asking = [tab for tab in tabs if any("/changes" in one["url"] for one in record(tab, "net"))]
    assert len(asking) == 1, "one tab polls for all"


@pytest.mark.parametrize("how", ["closed", "killed", "frozen", "silent"])
def test_another_tab_takes_over_within_a_second(
    start_server: StartServer, start_proxy: StartProxy, context: BrowserContext, how: str
) -> None:
    server = start_server(assistant="off")
    proxy = start_proxy(server)
    tabs = open_tabs(context, proxy.url, 3)
    old = holder(tabs)
    others = [tab for tab in tabs if tab is not old]
    began = time.time()
    if how == "closed":
        old.close()
    elif how == "killed":
        crash(old)
    elif how == "frozen":
        freeze(old)
    else:
        silence(old, 6)
        time.sleep(0.1)
        began = say(others[0], "who answers?")
    wait_for(others[0], lambda: holders(others), 5, "another tab holds")
    [new] = holders(others)
    opened = max(one["opened"] for one in record(new, "sockets")) / 1000
    # Silence is noticed after a second, and only then begins what the others begin at once.
    assert opened - began < (1.0 if how != "silent" else 2.2), opened - began
    print(f"{how}: {opened - began:.3f} s")
    said = say(others[0], "after the take-over")
    assert max(shown_at(tab, "after the take-over") - said for tab in others) < 1
    wait_for(others[0], lambda: proxy.sockets == 1, 3, "the old connection is closed")
    if how == "silent":
        codes = [data["code"] for kind, data in server_events(server) if kind == "server-close"]
        assert 4409 in codes, "by the server, on the new one's word"
        wait_for(others[0], lambda: texts(old) == texts(others[0]), 10, "the old holder follows, and shows all")
        assert len(holders(tabs)) == 1
    for tab in others:
        states = {one["status"] for one in record(tab, "states")[5:]}
        assert "error" not in states and "disconnected" not in states


def test_a_hidden_holder_hands_over_without_a_gap(
    start_server: StartServer, start_proxy: StartProxy, context: BrowserContext
) -> None:
    proxy = start_proxy(start_server(assistant="off"))
    tabs = open_tabs(context, proxy.url, 3)
    old = holder(tabs)
    others = [tab for tab in tabs if tab is not old]
    for tab in others:
        tab.evaluate("window.before = window.lab.states.length")
    hide(old)
    wait_for(others[0], lambda: holders(others) and not live_sockets(old), 5, "a visible tab holds")
    [new] = holders(others)
    opened = max(one["opened"] for one in record(new, "sockets"))
    assert opened < max(one["closed"] for one in record(old, "sockets")), "the new one was there before the old went"
    for tab in others:
        states = tab.evaluate("window.lab.states.slice(window.before).map(one => one.status)")
        assert set(states) <= {"connected"}, "nobody saw anything of it"
    assert proxy.sockets == 1


def hide(page: Page, hidden: bool = True) -> None:
    """What a tab is told when another one comes to the front; headless pages are all visible."""
    page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true })
          document.dispatchEvent(new Event("visibilitychange"))
        }""",
        hidden,
    )


HAND_OVERS = ["hide", "close", "silent", "hide", "crash", "close", "hide", "close", "crash", "hide"]


def hand_over(context: BrowserContext, tabs: list[Page], old: Page, kind: str, url: str) -> list[Page]:
    """The holder goes, or keeps still; a tab that is gone is followed by a new one. The tabs there are then."""
    if kind == "hide":
        hide(old)
    elif kind == "silent":
        silence(old, 3)
    else:
        if kind == "crash":
            crash(old)
        old.close()
        tabs = [*(tab for tab in tabs if tab is not old), context.new_page()]
        tabs[-1].goto(url, wait_until="commit")
    return tabs


def crash(page: Page) -> None:
    """Its process dies; nothing in it can say goodbye."""
    with pytest.raises(Exception, match=r"crash|closed"):
        page.goto("chrome://crash", timeout=5000)


def test_nothing_is_lost_doubled_or_reordered_across_ten_hand_overs(
    start_server: StartServer, start_proxy: StartProxy, context: BrowserContext
) -> None:
    proxy = start_proxy(start_server(assistant_pace=4000))
    tabs = open_tabs_with_answers(context, proxy.url, 4)
    said: list[str] = []
    writer = tabs[0]
    for number, planned in enumerate(HAND_OVERS):
        old = holder(tabs)
        kind = planned if old is not writer else "hide"  # the writer itself only hides
        for part in range(3):
            said.append(f"message {number}.{part}")
            say(writer, said[-1])
            if part == 1:
                tabs = hand_over(context, tabs, old, kind, writer.url)
            writer.wait_for_timeout(150)
        wait_for(writer, lambda old=old, tabs=tabs: holders(tabs) not in ([], [old]), 8, f"{kind}: another holds")
        if old in tabs:
            hide(old, False)
    said.insert(0, "the first message")
    wait_for(writer, lambda: not [m for m in messages(writer) if m["state"] in ("sending", "running")], 30, "all ends")
    wait_for(writer, lambda: texts(writer) == said, 15, "the writer's tab shows all, once, in order")
    positions = [m["position"] for m in messages(writer)]
    assert positions == sorted(set(positions))
    for tab in tabs[1:]:  # a tab that was opened later has the newest page, and what came after it
        wait_for(tab, lambda tab=tab: shape(tab) == shape(writer)[-len(shape(tab)) :], 15, "the others show the same")
        assert len(messages(tab)) >= 40 or texts(tab) == said
        assert record(tab, "errors") == []
    shown = shape(writer)
    writer.reload()
    wait_state(writer, "connected", "polling")
    assert shape(writer) == shown[-len(shape(writer)) :], "as the server has it"


def shape(page: Page) -> list[tuple[str, str, str]]:
    return [(m["id"], m["state"], m["text"]) for m in messages(page)]


def open_tabs_with_answers(context: BrowserContext, url: str, count: int) -> list[Page]:
    first = context.pages[0]
    sign_in(first, url)
    wait_state(first, "connected", "polling")
    say(first, "the first message")
    wait_for(first, lambda: [m["state"] for m in messages(first)] == ["sent", "completed"], 20, "it is answered")
    tabs = [first, *(context.new_page() for _ in range(count - 1))]
    for tab in tabs[1:]:
        tab.goto(first.url)
        wait_state(tab, "connected", "polling")
    return tabs


def test_tabs_of_different_conversations_get_their_own(start_server: StartServer, context: BrowserContext) -> None:
    """Each tab has its own feeds; the list is everybody's; what one tab lacks does not take from another."""
    server = start_server(assistant="off")
    [one] = open_tabs(context, server.url, 1)
    other = context.new_page()
    other.goto(server.url)
    other.locator("form.new button").click()
    other.wait_for_url(lambda url: url != one.url and "/c/" in url)
    wait_state(other, "connected")
    say(other, "in the other one")
    say(one, "in this one")
    wait_for(one, lambda: texts(one) == ["the first message", "in this one"], 5, "its own messages")
    wait_for(other, lambda: texts(other) == ["in the other one"], 5, "its own messages")
    for tab in (one, other):
        titles = tab.locator("#conversations .conversation")
        wait_for(tab, lambda titles=titles: titles.count() == 2, 5, "both are in the list")
    late = context.new_page()
    late.goto(one.url)
    wait_for(late, lambda: texts(late) == ["the first message", "in this one"], 5, "a late tab")
    say(one, "and one more")
    wait_for(late, lambda: texts(late)[-1] == "and one more", 5, "a late tab follows")
    assert sum(live_sockets(tab) for tab in (one, other, late)) == 1


def test_signing_out_in_one_tab_ends_all_and_signing_in_revives_them(
    start_server: StartServer, context: BrowserContext
) -> None:
    server = start_server(assistant="off")
    tabs = open_tabs(context, server.url, 3)
    tabs[1].locator("form.person button").click()
    tabs[1].wait_for_url("**/sign-in")
    for tab in (tabs[0], tabs[2]):
        wait_state(tab, "disconnected", timeout=5)
    sign_in(tabs[1], server.url)
    for tab in tabs:
        wait_state(tab, "connected", timeout=5)
    assert sum(live_sockets(tab) for tab in tabs) == 1
    say(tabs[0], "back again")
    for tab in tabs:
        wait_for(tab, lambda tab=tab: "back again" in texts(tab), 5, "it flows")


def test_without_web_locks_each_tab_has_its_own(start_server: StartServer, context: BrowserContext) -> None:
    context.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', { value: undefined })")
    server = start_server(assistant="off")
    tabs = open_tabs(context, server.url, 2)
    assert [live_sockets(tab) for tab in tabs] == [1, 1]
    say(tabs[0], "to both")
    for tab in tabs:
        wait_for(tab, lambda tab=tab: texts(tab)[-1] == "to both", 5, "it arrives")


def test_the_server_closes_what_is_replaced_and_only_ones_own(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    person = ("--name", "Bo", "--email", "bo@example.org", "--password", PASSWORD)
    assert run_chatapp(server, "admin", "create", *person).returncode == 0
    ada, bo = Client(server.url).sign_in(), Client(server.url).sign_in("bo@example.org")
    with WebSocketPeer(ada) as old:
        path = f"/ws?replaces={old.hello.get('connection')}"
        with WebSocketPeer(bo, path) as foreign:
            foreign.echo()
            old.echo()
        with WebSocketPeer(ada, path) as new:
            assert old.wait_closed(5)[0] == 4409
            new.echo()
