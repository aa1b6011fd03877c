"""Ten journeys of a person who reads while a 200 kB answer is written: nothing is pulled away, nothing is lost."""

import queue
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab.browser import NARROW, assert_clean, new_page, say, sign_in, wait_for, wait_state
from lab.http import Client
from lab.model import Handler, Scripted
from lab.server import Server
from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

WRITTEN = 150_000  # characters before the journeys begin; with them it has some 200,000
PARAGRAPH = "Paragraph {n} says in plain words how a backup is made.\n\n"
CODE = "step_{n} = copy(source='/srv/data/{n:06d}', target='/srv/backups/{n:06d}', " + "check=True, " * 12 + ")\n"


class Pen:
    """An answer in a test's hand: what it writes is what the provider says."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[str | None] = queue.Queue()
        self._number = 0

    def script(self, handler: Handler) -> None:
        """Says what is written until the answer ends."""
        handler.begin()
        while (piece := self._pieces.get(timeout=300)) is not None:
            handler.say(piece)
        self._pieces.put(None)  # also for the answer of the other conversation, which reads along
        handler.say(finish="stop", end="[DONE]")

    def write(self, text: str) -> None:
        """The next piece."""
        self._pieces.put(text)

    def end(self) -> None:
        """Nothing more comes."""
        self._pieces.put(None)

    def next(self, form: str) -> str:
        """The form with a number of its own."""
        self._number += 1
        return form.format(n=self._number)

    @contextmanager
    def flowing(self, form: str, every: float = 0.1) -> Iterator[None]:
        """Goes on writing while a journey is under way."""
        over = threading.Event()

        def flow() -> None:
            while not over.wait(every):
                self.write(self.next(form))

        thread = threading.Thread(target=flow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.fixture(scope="module")
def pen() -> Pen:
    return Pen()


@pytest.fixture(scope="module")
def shared(pen: Pen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    provider = Scripted(pen.script)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    directory: Path = tmp_path_factory.mktemp("reading")
    with Server(directory, longest_answer=400_000, **provider.settings) as server:
        yield server
        pen.end()
    provider.shutdown()
    provider.server_close()


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each journey; it ends with the module."""


@pytest.fixture(scope="module")
def opened(browser: Browser, shared: Server, pen: Pen) -> Iterator[Page]:
    """A page that shows the long answer while it is written."""
    page = new_page(browser)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sign_in(page, shared.url)
    wait_state(page, "connected")
    say(page, "Tell me all about backups")
    written = 0
    while written < WRITTEN:
        piece = pen.next("## Part {n}\n\n" + PARAGRAPH[:-2] * 6 + "[1](../knowledge/start#first-run)\n\n")
        pen.write(piece)
        written += len(piece)
    pen.write("Here the journeys begin.\n\n")
    last(page, "p:has-text('Here the journeys begin.')").wait_for(timeout=90_000)
    yield page
    assert_clean(page)
    page.context.close()


@pytest.fixture(scope="module")
def address(opened: Page) -> str:
    """The conversation's."""
    return opened.url


@pytest.fixture
def reader(opened: Page, address: str) -> Page:
    """That page, also where the journey before this one got lost."""
    if opened.url != address:
        opened.goto(address)
        wait_state(opened, "connected")
    return opened


def length(page: Page) -> int:
    """Characters of the answer that the page shows."""
    found: int = page.evaluate(
        "document.querySelector('#messages [data-author=assistant] .body')?.textContent.length ?? 0"
    )
    return found


def wait_for_more(page: Page, more: int = 400) -> None:
    """Until so many characters have come."""
    before = length(page)
    wait_for(page, lambda: length(page) >= before + more, 15, f"{more} characters more")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def top(page: Page) -> float:
    """How far the log is scrolled down."""
    found: float = page.evaluate("document.querySelector('#log').scrollTop")
    return found


def gap(page: Page) -> float:
    """How far the end of the log is below what is seen."""
    script = "(log => log.scrollHeight - log.clientHeight - log.scrollTop)(document.querySelector('#log'))"
    found: float = page.evaluate(script)
    return found


def rest(page: Page) -> float:
    """Waits until a scroll that is animated has ended; returns where."""
    seen = [-1.0, top(page)]

    def still() -> bool:
        page.wait_for_timeout(60)
        seen.append(top(page))
        return seen[-1] == seen[-2] == seen[-3]

    wait_for(page, still, 5, "the log rests")
    return seen[-1]


def go_to_end(page: Page) -> None:
    """By the button, where there is one; then the log follows."""
    if page.locator("#jump").is_visible():
        page.locator("#jump").click()
    page.locator("#log").evaluate("log => { log.scrollTop = log.scrollHeight }")
    wait_for(page, lambda: gap(page) < 3, 5, "at the end")


def assert_left_alone(page: Page) -> None:
    """What is read stays where it is, while more is written below."""
    where = rest(page)
    wait_for_more(page)
    assert top(page) == where
    wait_for(page, page.locator("#jump").is_visible, 3, "there is a way to what is new")


def assert_follows(page: Page) -> None:
    """The end stays in sight."""
    for _ in range(3):
        wait_for_more(page, 200)
        wait_for(page, lambda: gap(page) < 3, 3, "the end is in sight")


def over(page: Page) -> None:
    """Puts the mouse over the log."""
    box = page.locator("#log").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 200)


# 1 to 3: scrolling


@pytest.mark.parametrize("step", [-4, -40])
def test_a_small_turn_of_the_wheel_leaves_the_end(reader: Page, pen: Pen, step: int) -> None:
    with pen.flowing(PARAGRAPH):
        go_to_end(reader)
        assert_follows(reader)
        over(reader)
        for _ in range(3):
            reader.mouse.wheel(0, step)
            reader.wait_for_timeout(120)
        assert_left_alone(reader)
        for _ in range(10):  # the end moves while one goes there
            reader.mouse.wheel(0, 3000)
            reader.wait_for_timeout(150)
            if gap(reader) < 3:
                break
        assert_follows(reader)
        assert not reader.locator("#jump").is_visible()


@pytest.mark.parametrize("key", ["ArrowUp", "PageUp"])
def test_a_key_leaves_the_end_and_another_goes_back_there(reader: Page, pen: Pen, key: str) -> None:
    with pen.flowing(PARAGRAPH):
        go_to_end(reader)
        reader.locator("#log").focus()
        reader.keyboard.press(key)
        assert_left_alone(reader)
        reader.keyboard.press("End")
        wait_for(reader, lambda: gap(reader) < 3, 5, "back at the end")
        assert_follows(reader)


def test_a_finger_leaves_the_end(reader: Page, pen: Pen, browser: Browser) -> None:
    storage = reader.context.storage_state()
    width, height = NARROW
    phone = new_page(
        browser, viewport={"width": width, "height": height}, has_touch=True, is_mobile=True, storage_state=storage
    )
    phone.goto(reader.url)
    wait_state(phone, "connected")
    devtools = phone.context.new_cdp_session(phone)

    def drag(distance: int) -> None:
        """Puts a finger down, moves it in steps of 8 px and lifts it where it rests."""
        y, step = 400, 8 if distance > 0 else -8
        devtools.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": 180, "y": y}]})
        for moved in range(step, distance + step, step):
            devtools.send(
                "Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": 180, "y": y + moved}]}
            )
            phone.wait_for_timeout(16)
        phone.wait_for_timeout(100)
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    with pen.flowing(PARAGRAPH):
        assert_follows(phone)
        drag(40)
        assert_left_alone(phone)
    for _ in range(40):
        drag(-240)
        if gap(phone) < 3:
            break
    with pen.flowing(PARAGRAPH):
        assert_follows(phone)
    assert_clean(phone)
    phone.context.close()


# 4 to 6: what one does with what is there


def last(page: Page, selector: str) -> Locator:
    """The last such element of the answer."""
    return page.locator(f"#messages [data-author=assistant] .block {selector}").last


def test_a_selection_in_what_grows_stays(reader: Page, pen: Pen) -> None:
    pen.write("\n\nThe words to keep are these ones, and the paragraph")
    go_to_end(reader)
    last(reader, "p:has-text('The words to keep')").wait_for()
    reader.evaluate(
        """() => {
          const text = [...document.querySelectorAll(".block p")].at(-1).firstChild
          getSelection().setBaseAndExtent(text, 4, text, text.data.indexOf("ones"))
        }"""
    )
    with pen.flowing(" goes on and on with number {n}"):
        wait_for_more(reader)
        wait_for_more(reader)
    assert reader.evaluate("getSelection().toString()") == "words to keep are these "
    pen.write("\n\nAnother one.\n\n")
    last(reader, "p:has-text('Another one')").wait_for()
    assert reader.evaluate("getSelection().toString()") == "words to keep are these ", "also when it is finished"
    reader.evaluate("getSelection().removeAllRanges()")


def test_copy_works_while_the_code_grows(reader: Page, pen: Pen) -> None:
    pen.write("\n\n```python\nfirst = 1\n")
    go_to_end(reader)
    button = last(reader, "figure [data-action=copy-code]")
    last(reader, "code:has-text('first = 1')").wait_for()
    copied = "navigator.clipboard.readText()"
    over(reader)
    reader.mouse.wheel(0, -20)
    rest(reader)
    with pen.flowing("x_{n} = {n}\n", every=0.12):
        for number in range(4):
            reader.evaluate("navigator.clipboard.writeText('nothing')")
            box = button.bounding_box()
            assert box
            reader.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            reader.mouse.down()
            wait_for_more(reader, 12)
            reader.mouse.up()
            wait_for(reader, lambda: reader.evaluate(copied).startswith("first = 1\nx_"), 2, f"click {number} copies")
            assert button.inner_text() == "Copied", "and says so"
            wait_for_more(reader, 12)
            assert button.inner_text() == "Copied", "for as long as one needs to read it"
            wait_for(reader, lambda: button.inner_text() == "Copy", 5, "its own label again")
        button.focus()
        wait_for_more(reader, 30)
        assert button.evaluate("button => button === document.activeElement"), "the keyboard stays there"
        reader.evaluate("navigator.clipboard.writeText('nothing')")
        reader.keyboard.press("Enter")
        wait_for(reader, lambda: reader.evaluate(copied).startswith("first = 1\nx_"), 2, "so does the Enter key")
    pen.write("```\n\nAfter the code.\n\n")


def test_code_that_is_scrolled_sideways_stays_so(reader: Page, pen: Pen) -> None:
    pen.write("\n\n```python\n" + pen.next(CODE) * 3)
    go_to_end(reader)
    code = last(reader, "pre")
    wait_for(reader, lambda: code.evaluate("pre => pre.scrollWidth > pre.clientWidth + 100"), 5, "it is too wide")
    box = code.bounding_box()
    assert box
    reader.mouse.move(box["x"] + 100, box["y"] + 20)
    reader.mouse.wheel(120, 0)
    wait_for(reader, lambda: code.evaluate("pre => pre.scrollLeft") == 120, 5, "scrolled sideways")
    with pen.flowing(CODE, every=0.2):
        wait_for_more(reader)
        wait_for_more(reader)
    assert code.evaluate("pre => pre.scrollLeft") == 120
    pen.write("```\n\nAfter the code.\n\n")
    last(reader, "p:has-text('After the code.')").wait_for()


# 7 to 10: coming back


def read_above(page: Page) -> tuple[str, float]:
    """Scrolls far up in the answer; what is read there, and how far from the top of the log."""
    page.locator("#log").evaluate("log => { log.scrollTop = log.scrollHeight * 0.4 }")
    rest(page)
    found: list[str | float] = page.evaluate(
        """() => {
          const log = document.getElementById("log"), { top, bottom } = log.getBoundingClientRect()
          const parts = [...document.querySelectorAll("#messages .block > :is(h3, h4)")] // each has a number of its own
          const read = parts.find(one => one.getBoundingClientRect().top >= top + 40)
          return [read.textContent, read.getBoundingClientRect().top - top]
        }"""
    )
    return str(found[0]), float(found[1])


def assert_reads(page: Page, words: str, offset: float) -> None:
    """That passage is where it was."""
    script = """words => {
      const log = document.getElementById("log").getBoundingClientRect()
      const read = [...document.querySelectorAll("#messages .block > *")].find(one => one.textContent === words)
      return read ? read.getBoundingClientRect().top - log.top : NaN
    }"""
    places: list[float] = []

    def is_there() -> bool:
        places.append(page.evaluate(script, words))
        return abs(places[-1] - offset) < 6

    try:
        wait_for(page, is_there, 5, "one is where one was")
    except AssertionError as problem:
        raise AssertionError(f"{offset}: {places[-5:]}") from problem


def test_back_and_forth_between_conversations(reader: Page, pen: Pen) -> None:
    here = reader.url
    with pen.flowing(PARAGRAPH, every=0.2):
        read = read_above(reader)
        reader.locator("form.new button").click()
        reader.wait_for_url(lambda url: url != here)
        wait_state(reader, "connected")
        reader.go_back()
        wait_state(reader, "connected")
        assert reader.url == here
        assert_reads(reader, *read)
        assert_left_alone(reader)
        reader.go_forward()
        wait_state(reader, "connected")
        reader.locator(f"#conversations a[href='{here.removeprefix(origin(here))}']").click()
        wait_state(reader, "connected")
        assert_reads(reader, *read)
        go_to_end(reader)
        reader.reload()
        wait_state(reader, "connected")
        assert_follows(reader)


def origin(url: str) -> str:
    """Scheme and host of an address."""
    return "/".join(url.split("/")[:3])


def test_a_citation_and_back(reader: Page, pen: Pen) -> None:
    here = reader.url
    Client(reader.url.split("/c/")[0]).sign_in().create("A newer one, in which nobody is", str(uuid.uuid4()))
    with pen.flowing(PARAGRAPH, every=0.2):
        for way in ("link", "history"):
            read = read_above(reader)
            visible = reader.locator("#messages a.citation")
            number = reader.evaluate(
                """() => [...document.querySelectorAll("#messages a.citation")]
                  .findIndex(one => one.getBoundingClientRect().top > 200)"""
            )
            visible.nth(number).click()
            reader.wait_for_url("**/knowledge/start**")
            if way == "link":
                reader.get_by_role("link", name="Knowledge").click()
                reader.wait_for_url(lambda url: "/knowledge/" not in url)
                reader.get_by_role("link", name="Back to the chat").click()
            else:
                reader.go_back()
            reader.wait_for_url(here)
            wait_state(reader, "connected")
            assert_reads(reader, *read)
            assert_left_alone(reader)


def test_each_of_two_tabs_is_where_its_reader_is(reader: Page, pen: Pen) -> None:
    other = reader.context.new_page()
    other.goto(reader.url)
    with pen.flowing(PARAGRAPH, every=0.1):
        wait_state(other, "connected", "polling")
        assert_follows(other)
        reader.bring_to_front()
        read = read_above(reader)
        assert_left_alone(reader)
        assert_reads(reader, *read)
        other.bring_to_front()
        assert_follows(other)
    text = "document.querySelector('#messages [data-author=assistant] .body').textContent"
    wait_for(other, lambda: reader.evaluate(text) == other.evaluate(text), 10, "both show the same")
    other.close()
    reader.bring_to_front()


def test_a_reload_leaves_the_reader_where_one_was(reader: Page, pen: Pen) -> None:
    with pen.flowing(PARAGRAPH, every=0.2):
        read = read_above(reader)
        reader.reload()
        wait_state(reader, "connected")
        assert_reads(reader, *read)
        assert_left_alone(reader)
    pen.end()
    answer = reader.locator("#messages [data-author=assistant]").last
    wait_for(reader, lambda: answer.get_attribute("data-state") != "running", 90, "the answer ends")
    assert answer.get_attribute("data-state") == "completed", answer.locator("footer").inner_text()
    assert_reads(reader, *read)
