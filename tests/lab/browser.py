"""A real Chromium, and what tests do with it: sign in, ask, read the log, wait for a state, take a picture."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from lab.processes import MARK, marked_environment
from lab.server import EMAIL, PASSWORD, ROOT

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = ROOT / "test-results"
WIDE = (1280, 800)
NARROW = (390, 780)

# Runs before the page's own scripts. All times are Date.now(), in the test's own clock.
RECORDER = """
(() => {
  if (window.top !== window) return
  const seen = window.lab = { states: [], net: [], sockets: [], articles: {}, violations: [], errors: [] }
  const now = () => Date.now()
  window.addEventListener("connection:changed", event => seen.states.push({ at: now(), ...event.detail }), true)
  document.addEventListener("securitypolicyviolation", event =>
    seen.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`))
  window.addEventListener("error", event => seen.errors.push(String(event.message)))
  window.addEventListener("unhandledrejection", event => seen.errors.push(String(event.reason)))

  const fetched = window.fetch
  window.fetch = async function (input, options) {
    const entry = { url: String(input?.url ?? input), at: now(), done: 0, status: 0 }
    seen.net.push(entry)
    try {
      const answer = await fetched.call(this, input, options)
      entry.status = answer.status
      return answer
    } finally {
      entry.done = now()
    }
  }
  window.WebSocket = class extends window.WebSocket {
    constructor(...given) {
      super(...given)
      const entry = { at: now(), opened: 0, heard: 0, closed: 0, code: 0 }
      seen.sockets.push(entry)
      this.addEventListener("open", () => entry.opened = now())
      this.addEventListener("message", event => {
        if (String(event.data).startsWith("<chat-feed")) entry.heard ||= now()
      })
      this.addEventListener("close", event => { entry.closed = now(); entry.code = event.code })
    }
  }

  const note = article => {
    const key = article.dataset.clientId || article.dataset.id
    const entry = seen.articles[key] ||= { author: article.dataset.author, first: now(), states: {}, lengths: [] }
    entry.states[article.dataset.state] ||= now()
    const length = article.querySelector(".body")?.textContent.length ?? 0
    if (entry.lengths.at(-1) !== length) entry.lengths.push(length)
  }
  // Only what a change touched: looking at all of a long log at each change would be what makes the page slow.
  const look = changes => {
    const touched = new Set()
    for (const { target, addedNodes } of changes) {
      touched.add((target.nodeType === 1 ? target : target.parentElement)?.closest("article.message"))
      for (const node of addedNodes) {
        if (node.nodeType !== 1) continue
        touched.add(node.closest("article.message"))
        for (const inner of node.querySelectorAll("article.message")) touched.add(inner)
      }
    }
    for (const article of touched) if (article?.closest("#messages")) note(article)
  }
  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("#messages article.message").forEach(note)
    new MutationObserver(look).observe(document.documentElement,
      { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["data-state"] })
  })

  // Says something as soon as the page's script has taken over the form; the time it was said is kept.
  seen.say = text => {
    const form = document.querySelector("#composer")
    const box = form.querySelector("textarea[name=body]")
    box.value = text
    box.dispatchEvent(new Event("input", { bubbles: true }))
    form.requestSubmit()
    return now()
  }
})()
"""


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless Chromium."""
    # Marked like the rest of the lab, it would count as left running by each test: it lives longer than they do.
    environment = {name: value for name, value in marked_environment().items() if name != MARK}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, env=environment)
        yield browser
        browser.close()


def new_page(browser: Browser, **options: Any) -> Page:
    """A page in a context of its own, with the recorder in it."""
    width, height = WIDE
    context = browser.new_context(**({"viewport": {"width": width, "height": height}} | options))
    context.set_default_timeout(15_000)
    if options.get("java_script_enabled", True):
        context.add_init_script(RECORDER)
    return context.new_page()


def sign_in(page: Page, url: str, email: str = EMAIL, password: str = PASSWORD) -> None:
    """Signs in by the form and waits for the conversation page."""
    page.goto(f"{url}/sign-in")
    page.locator("input[name=email]").fill(email)
    page.locator("input[name=password]").fill(password)
    page.locator("input[name=password]").press("Enter")
    page.locator("#composer textarea[name=body]").wait_for()


def state(page: Page) -> str:
    """The connection state that the page shows."""
    return page.locator("body").get_attribute("data-connection") or ""


def wait_state(page: Page, *states: str, timeout: float = 15) -> None:
    """Waits until the page is in one of these states."""
    wanted = ", ".join(f"body[data-connection={name}]" for name in states)
    try:
        page.locator(wanted).wait_for(timeout=timeout * 1000)
    except Exception as problem:
        raise AssertionError(f"{states} not within {timeout:g} s: {record(page, 'states')[-2:]}") from problem


BRIEF = ("at", "status", "ws", "poll", "reason", "wsReason", "pollReason", "notBefore", "queued")


def brief(page: Page) -> str:
    """The last changes of the connection's record, short enough to be read in a report."""
    return "; ".join(" ".join(str(one[name]) for name in BRIEF) for one in record(page, "states")[-6:])


def wait_for(page: Page, condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """Waits for a condition while the page goes on; returns its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}; {brief(page)}"
        page.wait_for_timeout(25)
    return value


def record(page: Page, name: str) -> Any:
    """What the recorder kept: states, net, sockets, articles, violations, errors."""
    return page.evaluate(f"window.lab.{name}")


def say(page: Page, text: str) -> None:
    """Types and sends with Enter, as a person does."""
    box = page.locator("#composer textarea[name=body]")
    box.fill(text)
    box.press("Enter")


def ask(page: Page, text: str, timeout: float = 20) -> dict[str, Any]:
    """Says it and waits for the whole answer to it, which is returned."""
    before = len([message for message in messages(page) if message["author"] == "assistant"])
    say(page, text)

    def ended() -> dict[str, Any] | None:
        answers = [message for message in messages(page) if message["author"] == "assistant"]
        over = len(answers) > before and answers[-1]["state"] in ("completed", "interrupted", "failed", "stopped")
        return answers[-1] if over else None

    found: dict[str, Any] = wait_for(page, ended, timeout, f"the answer to {text!r} ends")
    return found


def press_to(page: Page, words: str, key: str = "Tab") -> None:
    """Goes with the keyboard to a control with these words, and presses Enter."""
    focus = "e => e.matches('a, button, input, select, summary') ? e.innerText || e.ariaLabel || e.name : ''"
    for _ in range(80):
        page.keyboard.press(key)
        if words in str(page.evaluate(f"({focus})(document.activeElement)")):
            return page.keyboard.press("Enter")
    raise AssertionError(f"{key} never reaches {words!r}")


def messages(page: Page) -> list[dict[str, Any]]:
    """What the log shows, in the order of the page."""
    found: list[dict[str, Any]] = page.evaluate(
        """() => [...document.querySelectorAll("#messages article.message")].map(article => ({
          id: article.dataset.id ?? "", client_id: article.dataset.clientId ?? "", state: article.dataset.state,
          author: article.dataset.author, position: Number(article.dataset.position ?? NaN),
          revision: Number(article.dataset.revision ?? NaN),
          text: (article.querySelector(".body")?.textContent ?? "").replace(/\\s+/g, " ").trim(),
        }))"""
    )
    return found


def stored(page: Page, store: str) -> list[dict[str, Any]]:
    """The rows that this browser keeps for the product: of the store outbox or drafts, in the order of their keys."""
    rows: list[dict[str, Any]] = page.evaluate(
        """async store => {
          const found = []
          for (const { name } of await indexedDB.databases()) {
            if (!name.startsWith("chatapp:")) continue
            const database = await new Promise((resolve, reject) => {
              const request = indexedDB.open(name)
              request.onsuccess = () => resolve(request.result)
              request.onerror = () => reject(request.error)
            })
            found.push(...await new Promise(resolve => {
              const request = database.transaction(store).objectStore(store).getAll()
              request.onsuccess = () => resolve(request.result)
            }))
            database.close()
          }
          return found
        }""",
        store,
    )
    return rows


def screenshot(page: Page, name: str) -> None:
    """A picture for people, in test-results/."""
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=str(PICTURES / f"{name}.png"))


def pictures(page: Page, name: str) -> None:
    """For people: light and dark, wide and 390 px."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for size, (width, height) in (("wide", WIDE), ("390", NARROW)):
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(60)
            screenshot(page, f"{name}-{scheme}-{size}")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})


def assert_clean(page: Page) -> None:
    """No script error and no breach of the Content-Security-Policy so far on this page."""
    assert record(page, "violations") == []
    assert record(page, "errors") == []
