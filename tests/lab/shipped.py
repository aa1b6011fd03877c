"""The page's modules without a page: joined and minified as they are sent, run by QuickJS."""

import json
import re
from typing import Any

import quickjs

from chatapp.linker import joined
from chatapp.served import minified
from lab.server import ROOT

CALL = "globalThis.call = (name, given) => JSON.stringify(driver[name](...JSON.parse(given)) ?? null)"


def script(entry: str) -> str:
    """Everything that a module of this repository needs, as one script; its exports are the constant `driver`."""
    text = joined(entry, lambda name: (ROOT / name).read_text())
    last = re.findall(r"^const (module_\d+) =", text, re.M)[-1]
    return minified(f"{text}\nglobalThis.driver = {last}\n")


class Shipped:
    """What a module of tests/js exports, to be called with plain data."""

    def __init__(self, driver: str) -> None:
        self._context = quickjs.Context()
        self._context.eval(script(f"tests/js/{driver}.js"))
        self._context.eval(CALL)
        self._call = self._context.get("call")

    def call(self, name: str, *given: Any) -> Any:
        """A function's outcome; what it left for later (promises) is done, too."""
        outcome = self._call(name, json.dumps(given))
        while self._context.execute_pending_job():
            pass
        return json.loads(outcome)
