"""Real pages in Chromium, ours and the peer's: `python -m failover.chromium`. Their events come at the end."""

import os
import signal
from typing import Any

from failover.lines import orders, say
from lab.browser import launched, messages, new_page, record, sign_in
from playwright.sync_api import Browser, Error, Page

# What Chromium tells a page when its tab goes into the background and comes back after a freeze.
HIDE = """() => {
  for (const [name, value] of [["hidden", true], ["visibilityState", "hidden"]])
    Object.defineProperty(document, name, { configurable: true, get: () => value })
  document.dispatchEvent(new Event("visibilitychange"))
}"""
SHOW = """() => {
  delete document.hidden
  delete document.visibilityState
  document.dispatchEvent(new Event("resume"))
  document.dispatchEvent(new Event("visibilitychange"))
}"""
NETWORK_CHANGED = "() => { dispatchEvent(new Event('offline')); dispatchEvent(new Event('online')) }"
UP = {"connected": "websocket", "polling": "polling"}


class Tab:
    """One page in a context of its own."""

    def __init__(self, browser: Browser, order: dict[str, Any]) -> None:
        self.name, self.system = order["client"], order["system"]
        self.page: Page = new_page(browser)
        if self.system == "ours":
            sign_in(self.page, order["url"], order["email"])
            self.page.goto(f"{order['url']}/c/{order['conversation']}", wait_until="commit")
        else:
            self.page.goto(f"{order['url']}/peer/{self.system}/page")
            self.page.evaluate("given => window.begin(...given)", [self.system, self.name])
        say("started", client=self.name)

    def send(self, body: str) -> None:
        """A message of its own."""
        say("sent", client=self.name, id=body)
        how = "body => { window.lab.say(body) }" if self.system == "ours" else "body => window.lab.send(body)"
        self.page.evaluate(how, body)

    def network(self, event: str) -> None:
        """offline, online; network: gone for a moment, as when a phone leaves the Wi-Fi; hide, show."""
        if event in ("offline", "online"):
            self.page.context.set_offline(event == "offline")
        else:
            self.page.evaluate({"network": NETWORK_CHANGED, "freeze": HIDE, "wake": SHOW}[event])

    def tell(self) -> None:
        """Everything that the page recorded."""
        if self.system != "ours":
            for event in record(self.page, "events"):
                say(**event, client=self.name)
            return
        for one in record(self.page, "states"):
            status = one["status"]
            transport = UP.get(status, "")
            state = "up" if transport else "down"
            say("state", one["at"] / 1000, client=self.name, state=state, transport=transport, why=one["reason"])
        articles = record(self.page, "articles")
        for shown in messages(self.page):
            known = articles.get(shown["client_id"]) or articles.get(shown["id"])
            if shown["author"] == "user" and known:
                say("got", known["first"] / 1000, client=self.name, id=shown["text"])


class Tabs:
    """All pages of this process, by the client's name."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.tabs: dict[str, Tab] = {}
        self._frozen: list[int] = []
        self._unsaid: list[dict[str, Any]] = []  # a frozen page cannot be told anything

    def obey(self, order: dict[str, Any]) -> None:
        """start, send, network."""
        if order["do"] == "ping":
            say("pong")
        elif order["do"] == "start":
            self.tabs[order["client"]] = Tab(self.browser, order)
        elif order["do"] == "network":
            self._network(order["event"])
        elif self._frozen:
            self._unsaid.append(order)
        elif order["client"] in self.tabs:
            self.tabs[order["client"]].send(order["id"])

    def _network(self, event: str) -> None:
        # Page.setWebLifecycleState does nothing to a page that is not hidden, and headless ones never are: what runs
        # the pages is stopped instead, while the browser with their sockets goes on.
        if event == "wake":
            self._signal(signal.SIGCONT)
        for tab in self.tabs.values():
            tab.network(event)
        if event == "freeze":
            listed = self.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
            self._frozen = [one["id"] for one in listed if one["type"] == "renderer"]
            self._signal(signal.SIGSTOP)
        elif event == "wake":
            self._frozen, unsaid, self._unsaid = [], self._unsaid, []
            for order in unsaid:
                self.obey(order)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._frozen:
            os.kill(pid, number)


def main() -> None:
    """Obey until told to stop."""
    with launched() as browser:
        tabs = Tabs(browser)
        for order in orders():
            try:
                tabs.obey(order)
            except Error as problem:
                say("failed", client=order.get("client", ""), why=str(problem)[:300])
        for tab in tabs.tabs.values():
            tab.tell()
        say("stopped")


if __name__ == "__main__":
    main()
