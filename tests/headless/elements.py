"""What the core reads of the server's elements, as plain data; a small reader of what the server writes."""

import html
import json
import re
from functools import lru_cache
from typing import Any

_TAG = re.compile(r"<!--.*?-->|<(/?)([a-zA-Z][^\s/>]*)((?:[^>\"']|\"[^\"]*\"|'[^']*')*)>", re.DOTALL)
_ATTRIBUTE = re.compile(r"([^\s=/>\"']+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+)))?")
_VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)

Tree = dict[str, Any]


@lru_cache(maxsize=2000)
def parsed(markup: str) -> str:
    """The elements of a frame or of an answer, as JSON for headless/page.js: {t: tag, a: attributes, c: children,
    x: text of one without children, s: the source between its tags}. Text beside elements is dropped."""
    return json.dumps(trees(markup), ensure_ascii=False, separators=(",", ":"))


def trees(markup: str) -> list[Tree]:
    """The same, as Python's data. What is not closed ends with what holds it."""
    root: Tree = {"c": []}
    open_: list[tuple[Tree, int]] = [(root, 0)]
    for found in _TAG.finditer(markup):
        slash, name, rest = found.groups()
        if name is None:  # a comment
            continue
        tag = name.lower()
        if slash:
            depth = next((n for n in range(len(open_) - 1, 0, -1) if open_[n][0]["t"] == tag), len(open_))
            for element, start in open_[depth:]:
                _close(element, markup[start : found.start()])
            del open_[depth:]
            continue
        element = {"t": tag, "a": _attributes(rest)}
        open_[-1][0].setdefault("c", []).append(element)
        if tag not in _VOID:
            open_.append((element, found.end()))
    for element, start in open_[1:]:
        _close(element, markup[start:])
    return list(root["c"])


def _close(element: Tree, source: str) -> None:
    if "c" not in element:
        element["x"] = html.unescape(source) if "&" in source else source
    if element["a"].get("class") == "block":
        element["s"] = source


def _attributes(text: str) -> dict[str, str]:
    found = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text) if text else ():
        value = double or single or bare
        found[name.lower()] = html.unescape(value) if "&" in value else value
    return found
