"""What is said to be kept is kept: messages that wait survive a killed browser, in the order they were said in."""

import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab.browser import ARGUMENTS, CHROMIUM, RECORDER, messages, record, say, sign_in, stored, wait_for, wait_state
from lab.faultproxy import FaultProxy
from lab.http import Client
from lab.processes import marked_environment
from lab.profile import Profile
from lab.server import Server
from playwright.sync_api import Browser, Dialog, Page

pytestmark = pytest.mark.browser
StartServer = Callable[..., Server]
StartProxy = Callable[[Server], FaultProxy]
ROUNDS = 6
WAITING = 4
KILLED_AFTER_MS = 50


@pytest.fixture
def profile(browser: Browser, tmp_path: Path) -> Iterator[Profile]:
    """A browser that can be killed."""
    profile = Profile(browser, tmp_path / "profile")
    yield profile
    profile.close()


def texts(page: Page) -> list[str]:
    return [m["text"] for m in messages(page)]


def states(page: Page) -> list[str]:
    return [m["state"] for m in messages(page)]


def come_back(page: Page, address: str, url: str) -> None:
    """Opens a conversation in a browser that was killed, which may have lost the last half minute's cookies."""
    page.goto(url)
    if "/sign-in" in page.url:
        sign_in(page, address)
        page.goto(url)


@pytest.mark.timeout(240)
def test_a_killed_browser_keeps_what_it_called_sending(
    start_server: StartServer, start_proxy: StartProxy, profile: Profile
) -> None:
    """Killed 50 ms after the last of four messages was shown as sending, with the server away; then started again."""
    proxy = start_proxy(start_server(assistant="off"))
    page = profile.open()
    sign_in(page, proxy.url)
    wait_state(page, "connected")
    say(page, "the first message")
    page.wait_for_url("**/c/*")
    said = ["the first message"]
    for number in range(ROUNDS):
        page = say_and_be_killed(profile, page, proxy, [f"message {number}.{part}" for part in range(WAITING)], said)
    assert texts(page) == said
    page.reload()
    wait_for(page, lambda: texts(page) == said, 5, "each exactly once, in order, for the server, too")
    assert stored(page, "outbox") == []


def say_and_be_killed(profile: Profile, page: Page, proxy: FaultProxy, waiting: list[str], said: list[str]) -> Page:
    """Says what is to wait, kills the browser, and sees it sent from the next one, whose page it returns."""
    url = page.url
    wait_for(page, lambda: states(page) == ["sent"] * len(said), 20, "all is sent")
    proxy.network_down()
    for text in waiting:
        say(page, text)
    wait_for(page, lambda: states(page)[-WAITING:] == ["sending"] * WAITING, 5, "they wait")
    page.wait_for_timeout(KILLED_AFTER_MS)
    profile.kill9()
    said += waiting
    proxy.heal()
    again = profile.open()
    come_back(again, proxy.url, url)
    wait_for(again, lambda: texts(again) == said, 20, "all that waited was kept")
    wait_for(again, lambda: states(again) == ["sent"] * len(said), 20, "all is sent")
    return again


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the tests below, none of which harms it."""
    with Server(tmp_path_factory.mktemp("shared"), assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture
def proxy(shared: Server) -> Iterator[FaultProxy]:
    """What stands before it."""
    with FaultProxy(shared.port) as proxy:
        yield proxy


def begin(page: Page, url: str, text: str = "the first message") -> str:
    """Signs in and says something in a conversation of its own; its address."""
    sign_in(page, url)
    page.locator("form.new button").click()
    page.wait_for_url("**/c/*")
    wait_state(page, "connected")
    say(page, text)
    wait_for(page, lambda: states(page) == ["sent"], 10, "it is sent")
    return page.url


def note(page: Page) -> str:
    """What the page says of what it cannot keep."""
    shown = page.locator("#unkept")
    return shown.inner_text() if shown.is_visible() else ""


# As Chromium does where the disk is full; the slow test below has a disk that is.
FULL = """(() => {
  const put = IDBObjectStore.prototype.put
  window.setFull = isFull => {
    IDBObjectStore.prototype.put = isFull ? () => { throw new DOMException("full", "QuotaExceededError") } : put
  }
})()"""


def test_where_storage_is_full_the_page_says_so_and_asks_before_it_closes(proxy: FaultProxy, page: Page) -> None:
    page.context.add_init_script(FULL)
    begin(page, proxy.url)
    page.evaluate("window.setFull(true)")
    proxy.network_down()
    say(page, "too much")
    wait_for(page, lambda: states(page)[-1] == "unstored", 5, "nothing says that it is kept")
    word = page.locator("article .state").last
    wait_for(page, lambda: "Not kept on this device" in word.inner_text(), 3, "once it is known")
    wait_for(page, lambda: "storage is full" in note(page), 3, "in words")
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.close(run_before_unload=True)
    wait_for(page, lambda: asked == ["beforeunload"], 5, "the browser asks")
    page.evaluate("window.setFull(false)")
    proxy.heal()
    wait_for(page, lambda: states(page) == ["sent"] * 2, 20, "it goes out all the same")
    wait_for(page, lambda: not note(page), 5, "once it is acknowledged nothing is unkept")
    page.reload()
    wait_state(page, "connected")
    assert texts(page) == ["the first message", "too much"]
    assert page.locator("#composer textarea").input_value() == "", "and is no draft any more"


REFUSED = """async () => {
  const script = document.querySelector("script[type=module][src*='app.js']").src
  const { Storage } = await import(script.replace("app.js", "browser/storage.js"))
  const storage = new Storage("trial")
  const row = (owner) => ({ conversation: "one", owner, turn: 1, text: owner })
  await storage.write([["drafts", "put", row("before")]])
  window.setFull(true)
  const write = storage.write([["drafts", "delete", ["one", "before"]], ["drafts", "put", row("after")]])
  const refused = await write.then(() => "", error => error.name)
  return [refused, ...(await storage.rows("drafts")).map(({ text }) => text)]
}"""


def test_a_write_that_is_refused_at_once_undoes_what_came_before_it(start_server: StartServer, page: Page) -> None:
    page.context.add_init_script(FULL)
    begin(page, start_server(assistant="off", static_joined="no").url)  # else there is no module to ask for
    assert page.evaluate(REFUSED) == ["QuotaExceededError", "before"]


def test_what_could_not_be_stored_keeps_its_place(proxy: FaultProxy, page: Page) -> None:
    """Two that find no room, then one that does: in that order they are sent, and kept once there is room."""
    page.context.add_init_script(FULL)
    url = begin(page, proxy.url)
    proxy.network_down()
    wait_state(page, "reconnecting")
    page.evaluate("window.setFull(true)")
    said = ["the first message", "no room", "none either", "fits"]
    say(page, said[1])
    say(page, said[2])
    wait_for(page, lambda: states(page)[1:] == ["unstored"] * 2, 5, "there is no room")
    page.evaluate("window.setFull(false)")
    say(page, said[3])
    wait_for(page, lambda: states(page)[-1] == "sending", 5, "kept")
    proxy.heal()
    wait_for(page, lambda: states(page) == ["sent"] * 4, 20, "they go out")
    page.goto(url)
    wait_for(page, lambda: len(texts(page)) == 4, 10, "the server has them")
    assert texts(page) == said


def test_what_waits_for_a_conversation_that_is_deleted_meanwhile_is_the_next_ones_draft(
    proxy: FaultProxy, me: Client, page: Page
) -> None:
    url = begin(page, proxy.url)
    proxy.network_down()
    wait_state(page, "reconnecting")
    for text in ("what waits", "and waits"):
        say(page, text)
    wait_for(page, lambda: states(page)[1:] == ["sending"] * 2, 5, "it is kept")
    assert me.post(f"/c/{url.rsplit('/', 1)[1]}/delete").status in (204, 303)
    other = page.context.new_page()
    page.close()
    proxy.heal()
    other.goto(proxy.url)
    wait_for(other, lambda: len(stored(other, "drafts")) == 2, 10, "they are drafts")
    assert stored(other, "outbox") == []
    if not other.locator("#composer textarea").input_value():
        other.locator("form.new button").first.click()
    field = other.locator("#composer textarea")
    wait_for(other, lambda: field.input_value() == "what waits", 10, "the first one is there")


def test_going_on_in_a_new_conversation_takes_all_or_stays(proxy: FaultProxy, me: Client, page: Page) -> None:
    """Where the browser cannot store it for the new one, the page stays with everything, and says so."""
    page.context.add_init_script(FULL)
    url = begin(page, proxy.url)
    proxy.network_down()
    wait_state(page, "reconnecting")
    say(page, "what waits")
    wait_for(page, lambda: states(page)[1:] == ["sending"], 5, "it is kept")
    page.locator("#composer textarea").fill("half a text")
    assert me.post(f"/c/{url.rsplit('/', 1)[1]}/delete").status in (204, 303)
    proxy.heal()
    page.locator("#gone").wait_for(timeout=20_000)
    drafts = lambda: [(row["conversation"], row["text"]) for row in stored(page, "drafts")]  # noqa: E731
    wait_for(page, lambda: drafts() == [("new", "half a text")], 5, "so is what is being written")
    page.evaluate("window.setFull(true)")
    page.locator("#gone [data-action=go-on]").click()
    said = page.locator("#gone [data-slot=problem]")
    wait_for(page, lambda: "could not store your text" in said.inner_text(), 5, "it says so")
    assert page.url == url and states(page)[1:] == ["failed"]
    assert [row["body"] for row in stored(page, "outbox")] == ["what waits"]
    assert page.locator("#composer textarea").input_value() == "half a text"
    page.evaluate("window.setFull(false)")
    page.locator("#gone [data-action=go-on]").click()
    page.wait_for_url(lambda address: "/c/" in address and address != url)
    field = page.locator("#composer textarea")
    wait_for(page, lambda: field.input_value() == "what waits\n\nhalf a text", 5, "all of it is there")
    assert stored(page, "outbox") == []


def test_what_waits_does_not_take_the_reader_to_the_end(proxy: FaultProxy, page: Page) -> None:
    """Neither at a load nor where another tab's message is taken up after a sleep: one reads on where one was."""
    refusal = '{"error": {"code": "too-long", "message": ""}}'
    begin(page, proxy.url, "a long story\n" * 200)
    page.context.route("**/messages", lambda route: route.fulfill(status=422, body=refusal))
    say(page, "not taken " * 100)  # too long for a frame, hence by POST
    wait_for(page, lambda: states(page) == ["sent", "failed"], 5, "it stays in the outbox")
    log = page.locator("#log")
    log.evaluate("log => { log.scrollTop = 500 }")
    frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(frames)
    page.reload()
    wait_state(page, "connected")
    assert states(page) == ["sent", "failed"]
    page.evaluate(frames)
    assert abs(log.evaluate("log => log.scrollTop") - 500) < 6
    other = page.context.new_page()
    other.goto(page.url)
    say(other, "nor this one " * 100)
    wait_for(other, lambda: states(other) == ["sent", "failed", "failed"], 5, "it stays there, too")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    wait_for(page, lambda: len(states(page)) == 3, 5, "it is taken up")
    page.evaluate(frames)
    assert abs(log.evaluate("log => log.scrollTop") - 500) < 6
    say(page, "from here " * 100)
    wait_for(page, lambda: log.evaluate("log => log.scrollTop") > 1000, 5, "what one writes oneself is shown")


# Loses the connection to the database once, as WebKit says it, and for good for the object that has it.
LOST = """(() => {
  const lost = new WeakSet()
  const transaction = IDBDatabase.prototype.transaction
  window.isLosing = false
  IDBDatabase.prototype.transaction = function (...given) {
    if (window.isLosing) lost.add(this)
    window.isLosing = false
    if (lost.has(this)) throw new DOMException("Connection to Indexed Database server lost", "UnknownError")
    return transaction.apply(this, given)
  }
})()"""


def test_a_lost_connection_to_the_database_is_opened_anew(proxy: FaultProxy, page: Page) -> None:
    page.context.add_init_script(LOST)
    begin(page, proxy.url)
    proxy.network_down()
    wait_state(page, "reconnecting")
    page.evaluate("window.isLosing = true")
    say(page, "kept all the same")
    wait_for(page, lambda: states(page)[-1] == "sending", 5, "it is kept")
    assert [row["body"] for row in stored(page, "outbox")] == ["kept all the same"]


# Reads, and never ends a write.
HANGING = """(() => {
  const transaction = IDBDatabase.prototype.transaction
  const hung = { objectStore: () => ({ put: () => ({}), delete: () => ({}) }) }
  IDBDatabase.prototype.transaction = function (names, mode, options) {
    return mode === "readwrite" ? hung : transaction.call(this, names, mode, options)
  }
})()"""


def test_a_page_comes_alive_where_the_move_of_what_is_older_hangs(proxy: FaultProxy, page: Page) -> None:
    url = begin(page, proxy.url)
    page.goto(f"{proxy.url}/healthz")
    prefix = page.evaluate("async () => (await indexedDB.databases())[0].name.replace('chatapp:', '')")
    conversation = url.rsplit("/", 1)[1]
    key = f"{prefix}:draft:{conversation}"
    page.evaluate("key => localStorage.setItem(key, 'an older draft')", key)
    page.context.add_init_script(HANGING)
    page.goto(url)
    page.locator("body[data-alive]").wait_for(timeout=10_000)
    wait_state(page, "connected")
    assert page.evaluate("key => localStorage.getItem(key)", key) == "an older draft", "nothing is lost"


@pytest.mark.slow
def test_on_a_full_disk_nothing_is_called_sending(proxy: FaultProxy, browser: Browser, tmp_path: Path) -> None:
    """The profile lies on a disk of 32 MB, which is filled to the last 2 kB."""
    profile = tmp_path / "profile"
    profile.mkdir()
    start = tmp_path / "chromium"
    mount = f"mount -t tmpfs -o size=32m none {profile}"
    start.write_text(f'#!/bin/sh\nexec unshare -rm sh -c \'{mount} && exec {CHROMIUM} "$@"\' sh "$@"\n')
    start.chmod(0o755)
    context = browser.browser_type.launch_persistent_context(
        str(profile), executable_path=str(start), args=ARGUMENTS, env=dict(marked_environment())
    )
    try:
        context.add_init_script(RECORDER)
        page = context.pages[0]
        begin(page, proxy.url)
        proxy.network_down()
        page.evaluate(FILL)
        text = "".join(random.choices(string.ascii_letters, k=15_000))
        say(page, text)
        wait_for(page, lambda: states(page)[-1] == "unstored", 10, "nothing says that it is kept")
        wait_for(page, lambda: "storage is full" in note(page), 3, "in words")
        proxy.heal()
        wait_for(page, lambda: states(page) == ["sent"] * 2, 20, "it goes out all the same")
        assert texts(page)[-1] == text
    finally:
        context.close()


FILL = """async () => {
  const database = await new Promise(resolve => {
    const request = indexedDB.open("filler", 1)
    request.onupgradeneeded = () => request.result.createObjectStore("rows", { autoIncrement: true })
    request.onsuccess = () => resolve(request.result)
  })
  const random = length => Array.from({ length: length / 8 }, () => Math.random().toString(36).slice(2, 10)).join("")
  const put = length => new Promise(resolve => {
    const transaction = database.transaction("rows", "readwrite")
    transaction.objectStore("rows").put(random(length))
    transaction.oncomplete = () => resolve(true)
    transaction.onabort = () => resolve(false)
  })
  for (const length of [1000000, 100000, 10000, 2000]) for (let n = 0; n < 60 && await put(length); n += 1);
}"""


def test_without_indexeddb_the_chat_goes_on_in_memory_and_says_so(proxy: FaultProxy, page: Page) -> None:
    page.context.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    begin(page, proxy.url)
    assert not note(page), "there is nothing to lose"
    page.locator("#composer textarea").fill("a draft")
    wait_for(page, lambda: "keeps nothing" in note(page), 5, "in words")
    proxy.network_down()
    say(page, "one")
    say(page, "two")
    wait_for(page, lambda: states(page)[-2:] == ["unstored"] * 2, 5, "nothing says that it is kept")
    proxy.heal()
    wait_for(page, lambda: states(page) == ["sent"] * 3, 20, "they go out")
    assert texts(page) == ["the first message", "one", "two"]
    wait_for(page, lambda: not note(page), 3, "there is nothing to lose any more")
    assert record(page, "errors") == []


def test_what_an_older_version_left_in_local_storage_is_moved(proxy: FaultProxy, page: Page) -> None:
    url = begin(page, proxy.url)
    conversation = url.rsplit("/", 1)[1]
    page.goto(f"{proxy.url}/healthz")
    prefix = page.evaluate("async () => (await indexedDB.databases())[0].name.replace('chatapp:', '')")
    leave = """([prefix, conversation]) => {
      for (const [order, body] of ["older one", "older two"].entries()) {
        const id = crypto.randomUUID()
        const entry = { id, conversation, body, create: false, at: 1, order, tries: 0 }
        localStorage.setItem(`${prefix}:outbox:${id}`, JSON.stringify(entry))
      }
      localStorage.setItem(`${prefix}:outbox:broken`, "{")
      localStorage.setItem(`${prefix}:draft:${conversation}`, "an older draft")
    }"""
    page.evaluate(leave, [prefix, conversation])
    page.goto(url)
    wait_for(page, lambda: texts(page) == ["the first message", "older one", "older two"], 5, "they are there")
    wait_for(page, lambda: states(page) == ["sent"] * 3, 10, "they go out")
    assert page.locator("#composer textarea").input_value() == "an older draft"
    left = "Object.keys(localStorage).filter(key => /:(outbox|draft):/.test(key))"
    wait_for(page, lambda: page.evaluate(left) == [], 5, "nothing is left there")
    assert [row["text"] for row in stored(page, "drafts")] == ["an older draft"]


# A clock that a test can set, as a person or NTP sets it: also what performance.timeOrigin is read from at a load.
SET_CLOCK = """(() => {
  const real = Date
  let skew = Number(localStorage.getItem("lab-skew"))
  const origin = performance.timeOrigin + skew
  Object.defineProperty(performance, "timeOrigin", { get: () => origin })
  window.Date = class extends real {
    constructor(...given) { given.length ? super(...given) : super(real.now() + skew) }
    static now() { return real.now() + skew }
  }
  window.setClockBack = seconds => {
    skew = -1000 * seconds
    localStorage.setItem("lab-skew", skew)
  }
})()"""


def test_a_clock_that_is_set_back_changes_neither_order_nor_liveness(proxy: FaultProxy, page: Page) -> None:
    page.context.add_init_script(SET_CLOCK)
    url = begin(page, proxy.url)
    proxy.network_down()
    wait_state(page, "reconnecting")
    say(page, "before")
    page.evaluate("window.setClockBack(3600)")
    say(page, "after")
    wait_for(page, lambda: states(page)[1:] == ["sending"] * 2, 5, "they wait")
    other = page.context.new_page()
    proxy.heal()
    wait_for(page, lambda: states(page) == ["sent"] * 3, 15, "a clock does not hold up the connection")
    told = "Date.now() - new Date(document.getElementById('connection-status').dataset.lastConnected)"
    wait_state(page, "connected")
    assert 0 <= page.evaluate(told) < 60_000, "what is shown goes by it all the same: a sleep looks so, too"
    proxy.network_down()
    page.evaluate("window.setClockBack(0)")
    say(page, "before again")
    page.evaluate("window.setClockBack(3600)")
    say(page, "after again")
    wait_for(page, lambda: states(page)[3:] == ["sending"] * 2, 5, "they wait")
    page.close()
    proxy.heal()
    other.goto(url)
    said = ["the first message", "before", "after", "before again", "after again"]
    wait_for(other, lambda: states(other) == ["sent"] * 5, 15, "another page takes them up")
    assert texts(other) == said
    other.reload()
    assert texts(other) == said, "as the server has it"
