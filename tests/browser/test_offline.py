"""The page opens without a network and shows the last conversations; nothing readable stays after signing out."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.browser import (
    ask,
    assert_clean,
    messages,
    pictures,
    record,
    say,
    sign_in,
    wait_for,
    wait_state,
)
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.server import ROOT, Server
from playwright.sync_api import Page

pytestmark = pytest.mark.browser
StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
QUESTION = "How is a backup restored?"


def kept(page: Page) -> dict[str, list[str]]:
    """The stores of this origin and the paths in them."""
    stores: dict[str, list[str]] = page.evaluate(
        """async () => {
          const found = {}
          for (const name of await caches.keys()) {
            found[name] = (await (await caches.open(name)).keys()).map(one => new URL(one.url).pathname)
          }
          return found
        }"""
    )
    return stores


def kept_pages(page: Page) -> list[str]:
    return [path for name, paths in kept(page).items() if ":pages:" in name for path in paths]


def kept_text(page: Page, text: str) -> bool:
    """Whether any store holds this text."""
    look = """async text => {
      for (const name of await caches.keys()) {
        const cache = await caches.open(name)
        for (const key of await cache.keys()) {
          const kept = await cache.match(key) // none while it is being written anew
          if (kept && (await kept.text()).includes(text)) return true
        }
      }
      return false
    }"""
    return bool(page.evaluate(look, text))


def talk(page: Page, url: str, question: str = QUESTION) -> str:
    """Signs in, asks, and waits until the conversation with its answer is kept; its address."""
    sign_in(page, url)
    wait_state(page, "connected", "polling")
    return ask_and_keep(page, question)


def ask_and_keep(page: Page, question: str) -> str:
    answer = ask(page, question)
    wait_for(page, lambda: kept_text(page, f'data-id="{answer["id"]}"'), 20, "the answer is kept")
    return page.url


def users(page: Page) -> list[tuple[str, str]]:
    return [(m["text"], m["state"]) for m in messages(page) if m["author"] == "user"]


def test_offline_it_opens_with_the_last_conversations_and_sends_later(server: Server, page: Page) -> None:
    first = talk(page, server.url)
    page.locator("form.new button").click()
    page.wait_for_url(lambda url: url != first and "/c/" in url)
    wait_state(page, "connected")
    second = ask_and_keep(page, "What is a dead letter queue?")
    page.context.set_offline(True)
    page.goto(f"{server.url}/")
    assert page.url == second, "the last conversation"
    wait_for(page, lambda: len(messages(page)) == 2, 5, "question and answer")
    note = page.locator("#kept")
    wait_for(page, note.is_visible, 5, "the page says what it is")
    assert "Offline" in note.inner_text() and str(time.localtime().tm_year) in note.inner_text()
    assert page.locator("body").get_attribute("data-connection") != "connected"
    page.locator(f"#conversations a[href='{first.removeprefix(server.url)}']").click()
    page.wait_for_url(first)
    wait_for(page, lambda: [text for text, _ in users(page)] == [QUESTION], 5, "the other one opens, too")
    for text in ("one", "two", "three"):
        say(page, text)
    wait_for(page, lambda: users(page)[1:] == [(text, "sending") for text in ("one", "two", "three")], 5, "they wait")
    words = page.locator("article[data-author=user] .state").all_inner_texts()
    assert words[1:] == ["Queued: sends when the connection is back"] * 3
    wait_state(page, "reconnecting")
    wait_for(page, page.locator("#banner .notice").is_visible, 10, "the banner")
    pictures(page, "offline")
    page.evaluate("window.same = true")
    page.context.set_offline(False)
    wait_state(page, "connected", "polling")
    wait_for(page, lambda: {state for _, state in users(page)} == {"sent"}, 10, "they leave")
    assert [text for text, _ in users(page)] == [QUESTION, "one", "two", "three"]
    assert not note.is_visible()
    assert page.evaluate("window.same"), "it went on by itself"
    assert_clean(page)


def test_with_the_server_gone_it_opens_and_goes_on_when_it_is_back(server: Server, page: Page) -> None:
    url = talk(page, server.url)
    server.kill9()
    page.goto(url)
    wait_for(page, lambda: len(messages(page)) == 2, 5, "question and answer")
    assert page.locator("#kept").is_visible()
    page.goto(f"{server.url}/connection")
    page.get_by_role("heading", name="This page cannot be opened offline").wait_for()
    page.get_by_role("link", name="Open the last conversation").click()
    page.wait_for_url(url)
    say(page, "while it was gone")
    server.start()
    wait_for(page, lambda: users(page)[-1:] == [("while it was gone", "sent")], 30, "it leaves")
    wait_for(page, lambda: not page.locator("#kept").is_visible(), 5, "it is no copy any more")


def test_a_portals_page_is_neither_kept_nor_shown(
    start_server: StartServer, start_proxy: StartProxy, page: Page
) -> None:
    proxy = start_proxy(start_server())
    url = talk(page, proxy.url)
    before = kept(page)
    proxy.upgrade, proxy.http_error, proxy.http_error_on = "refuse", (200, {}), "/"
    proxy.reset_sockets()
    for address in (url, f"{proxy.url}/", url):
        page.goto(address)
        wait_for(page, lambda: len(messages(page)) == 2, 5, "our copy")
        assert "fault proxy" not in page.content()
    wait_for(page, page.locator("#kept").is_visible, 5, "marked as one")
    assert not kept_text(page, "from the fault proxy")
    assert kept(page).keys() == before.keys()
    proxy.heal()
    wait_state(page, "connected", "polling", timeout=30)


def test_slow_is_as_good_as_gone(start_server: StartServer, start_proxy: StartProxy, page: Page) -> None:
    proxy = start_proxy(start_server())
    url = talk(page, proxy.url)
    proxy.hang_paths, proxy.upgrade = ("/",), "hang"
    began = time.monotonic()
    page.goto(url, wait_until="commit")
    wait_for(page, lambda: len(messages(page)) == 2, 6, "our copy")
    assert 2.5 < time.monotonic() - began < 6
    proxy.heal()


def test_after_signing_out_nothing_readable_is_left(server: Server, page: Page) -> None:
    url = talk(page, server.url)
    page.locator("form.person button").click()
    page.wait_for_url("**/sign-in")
    wait_for(page, lambda: not kept_pages(page), 3, "the pages are gone")
    page.wait_for_timeout(4000)  # longer than a page waits before it keeps
    assert not kept_pages(page)
    assert not kept_text(page, QUESTION)
    page.context.set_offline(True)
    for address in (url, f"{server.url}/"):
        page.goto(address)
        page.get_by_role("heading", name="This page cannot be opened offline").wait_for()


@pytest.mark.parametrize("learns", ["while open", "on the next visit"])
def test_a_session_that_ended_elsewhere_empties_the_store(server: Server, page: Page, learns: str) -> None:
    url = talk(page, server.url)
    away = page
    if learns == "on the next visit":
        page.goto("about:blank")
        away = page.context.new_page()
        away.goto(f"{server.url}/healthz")
    cookies = {one["name"]: one["value"] for one in page.context.cookies()}
    elsewhere = Client(server.url)
    elsewhere.cookies.update(cookies)
    elsewhere.learn(elsewhere.get("/").page)
    assert elsewhere.post("/sign-out").status == 303
    if learns == "while open":
        wait_state(page, "disconnected")
    else:
        assert kept_pages(away), "nobody has told this browser yet"
        page.goto(url)
        page.wait_for_url(lambda address: "/sign-in?" in address)
    wait_for(away, lambda: not kept_pages(away), 5, "the pages are gone")
    assert not kept_text(away, QUESTION)


def test_only_pages_and_files_are_kept(server: Server, page: Page) -> None:
    talk(page, server.url)
    page.goto(f"{server.url}/connection")
    wait_state(page, "connected", "polling")
    stores = kept(page)
    [files] = [paths for name, paths in stores.items() if ":files:" in name]
    [(name, pages)] = [(name, paths) for name, paths in stores.items() if ":pages:" in name]
    person = page.locator("body").get_attribute("data-person")
    instance = page.locator("body").get_attribute("data-instance")
    assert name.startswith(f"chatapp:{instance}:") and name.endswith(f":{person}")
    assert all(path.startswith("/c/") for path in pages)
    assert all(path.startswith("/static/") or path == "/offline" for path in files)
    assert any(path.endswith("/js/app.js") for path in files)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_upgrade_replaces_files_and_pages(server: Server, page: Page, tmp_path: Path) -> None:
    url = talk(page, server.url)
    before = set(kept(page))
    worker = page.evaluate("fetch('/worker.js').then(answer => answer.text())")
    server.stop()
    newer = tmp_path / "newer"
    for name in ("chatapp", "static", "templates", "migrations"):
        shutil.copytree(ROOT / name, newer / name)
    with (newer / "static/css/base.css").open("a") as sheet:
        sheet.write("/* newer */\n")
    path = os.pathsep.join([str(newer), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with Server(server.directory, port=server.port, prefix=("env", f"PYTHONPATH={path}")):
        page.goto(url)
        assert page.evaluate("fetch('/worker.js').then(answer => answer.text())") != worker
        wait_for(page, lambda: set(kept(page)) - before, 30, "the new worker has its files")
        # It takes over at once, except where a debugger holds the old one, as here: then once no page needs that.
        end = time.monotonic() + 90
        while before & set(kept(page)):
            assert time.monotonic() < end, "the old stores are still there"
            page.goto("about:blank")
            page.wait_for_timeout(2000)
            page.goto(url)
        wait_for(page, lambda: kept_pages(page) == [url.removeprefix(server.url)], 15, "the page is kept anew")
        assert kept_text(page, "/* newer */")
        page.context.set_offline(True)
        page.goto(url)
        wait_for(page, lambda: len(messages(page)) == 2, 5, "it opens offline")
        page.goto("about:blank")
        page.context.set_offline(False)


def test_what_the_networks_filter_refuses_fails_alone(
    start_server: StartServer, start_proxy: StartProxy, page: Page
) -> None:
    """A filter in front of the server answers 403 to what it takes for an attack; all else passes, in order."""
    proxy = start_proxy(start_server(assistant="off", transports="polling"))
    sign_in(page, proxy.url)
    wait_state(page, "polling")
    proxy.filter_for = b"passwd"
    for text in ("before", "cat /etc/passwd", "after", "and more"):
        say(page, text)
    expected = {("before", "sent"), ("cat /etc/passwd", "failed"), ("after", "sent"), ("and more", "sent")}
    wait_for(page, lambda: set(users(page)) == expected, 15, "one fails, the others pass")
    failed = page.locator("article[data-state=failed] .failure")
    assert "the network's filter refused it" in failed.inner_text()
    sent = [text for text, state in users(page) if state == "sent"]
    assert sent == ["before", "after", "and more"]
    assert page.locator("body").get_attribute("data-connection") == "polling"
    proxy.filter_for = b""
    failed.locator("[data-action=retry-message]").click()
    wait_for(page, lambda: {state for _, state in users(page)} == {"sent"}, 10, "it can be tried again")
    assert record(page, "errors") == []
