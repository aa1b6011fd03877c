"""The server's elements read with the standard library: a small tree that keeps each element's own source."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset(["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"])


@dataclass
class Element:
    """One element: `source` is the text between its tags exactly as it came."""

    tag: str
    attributes: dict[str, str]
    children: "list[Element | str]" = field(default_factory=list)
    source: str = ""

    def get(self, name: str, default: str = "") -> str:
        """An attribute's value; an attribute without a value is the empty text."""
        return self.attributes.get(name, default)

    def has(self, name: str) -> bool:
        """Whether the attribute is there at all."""
        return name in self.attributes

    def number(self, name: str) -> int:
        """An attribute that must be a whole number."""
        return int(self.attributes[name])

    @property
    def classes(self) -> list[str]:
        """The words of its class attribute."""
        return self.get("class").split()

    @property
    def text(self) -> str:
        """All text in it, entities resolved, as textContent has it."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def elements(self) -> "list[Element]":
        """Its children that are elements."""
        return [child for child in self.children if isinstance(child, Element)]

    def walk(self) -> "Iterator[Element]":
        """Itself and everything below, in document order."""
        yield self
        for child in self.elements:
            yield from child.walk()

    def all(self, tag: str = "", *, css_class: str = "", **attributes: str) -> "list[Element]":
        """Everything below with that tag, class and attributes (`data_id` stands for data-id)."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [
            element
            for element in self.walk()
            if element is not self
            and (not tag or element.tag == tag)
            and (not css_class or css_class in element.classes)
            and all(element.attributes.get(name) == value for name, value in wanted.items())
        ]

    def one(self, tag: str = "", *, css_class: str = "", **attributes: str) -> "Element":
        """The first of `all`; LookupError if there is none."""
        found = self.all(tag, css_class=css_class, **attributes)
        if not found:
            raise LookupError(f"no {tag or 'element'} {css_class} {attributes} in <{self.tag}>")
        return found[0]


class _Reader(HTMLParser):
    """Builds the tree; getpos() gives the place in the source, from which each element's inner source is cut."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self._markup = markup
        self._lines = [0]
        for line in markup.split("\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)
        self.root = Element("", {}, source=markup)
        self._open: list[tuple[Element, int]] = [(self.root, 0)]
        self.feed(markup)
        self.close()

    def _at(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1][0].children.append(element)
        if tag not in VOID:
            self._open.append((element, self._at() + len(self.get_starttag_text() or "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1][0].children.append(element)

    def handle_endtag(self, tag: str) -> None:
        depth = next((n for n in range(len(self._open) - 1, 0, -1) if self._open[n][0].tag == tag), 0)
        if depth:
            for element, start in self._open[depth:]:
                element.source = self._markup[start : self._at()]
            del self._open[depth:]

    def handle_data(self, data: str) -> None:
        self._open[-1][0].children.append(data)


def parse(markup: str) -> Element:
    """The tree of a page or a fragment, under a root without a tag."""
    return _Reader(markup).root
