"""Real pages in Chromium, ours and the peer's: `python -m failover.chromium`. Their events come at the end."""

from typing import Any

from lab.browser import launched, messages, new_page, record, sign_in
from playwright.sync_api import Browser, CDPSession, Error, Page

from failover.lines import orders, say

UP = {"connected": "websocket", "polling": "polling"}


class Tab:
    """One page in a context of its own."""

    def __init__(self, browser: Browser, order: dict[str, Any]) -> None:
        self.name, self.system = order["client"], order["system"]
        self.page: Page = new_page(browser)
        self.devtools: CDPSession = self.page.context.new_cdp_session(self.page)
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
        """offline, online, freeze, wake; network: gone for a moment, as when a phone leaves the Wi-Fi."""
        if event in ("offline", "online"):
            self.page.context.set_offline(event == "offline")
        elif event == "network":
            self.page.evaluate("() => { dispatchEvent(new Event('offline')); dispatchEvent(new Event('online')) }")
        else:
            self.devtools.send("Page.setWebLifecycleState", {"state": "frozen" if event == "freeze" else "active"})

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


def main() -> None:
    """Obey until told to stop."""
    tabs: dict[str, Tab] = {}
    with launched() as browser:
        for order in orders():
            try:
                if order["do"] == "start":
                    tabs[order["client"]] = Tab(browser, order)
                elif order["do"] == "send" and order["client"] in tabs:
                    tabs[order["client"]].send(order["id"])
                elif order["do"] == "network":
                    for tab in tabs.values():
                        tab.network(order["event"])
            except Error as problem:
                say("failed", client=order.get("client", ""), why=str(problem)[:300])
        for tab in tabs.values():
            tab.tell()
        say("stopped")


if __name__ == "__main__":
    main()
