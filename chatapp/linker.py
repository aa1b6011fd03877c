"""Joins the modules that an entry imports into one script, in the order in which they would run.

Each becomes a function, so its names stay apart from the others'; what it exports is what the function returns. It
takes the part of the language that this project's modules keep to: `import {a, b as c} from "./path.js"`,
`import "./path.js"`, and `export` before a function, a class or a const. Everything else that begins a line with one
of the two words is refused by name, as are circles: joined, they would run in another order.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

IMPORT = re.compile(r'^import\s*(?:\{([^{}]*)\}\s*from\s*)?"(\.{1,2}/[^"]+)"[ \t]*;?', re.M)
EXPORT = re.compile(r"^export (?=(?:(?:async )?function\*?|class|const) (\w+))", re.M)
OTHER = re.compile(r"^(?:import\b|export\b).*", re.M)


class LinkError(Exception):
    """A module says something that is not joined, or is part of a circle. The message names it."""


def joined(entry: str, read: Callable[[str], str]) -> str:
    """One script with everything that the module `entry` needs. `read(name)` gives a module's text; names are paths
    from the same folder, with slashes. Raises LinkError, and what `read` raises."""
    linker = _Linker(read)
    linker.add(entry)
    return "".join(linker.parts)


class _Linker:
    def __init__(self, read: Callable[[str], str]) -> None:
        self._read = read
        self._names: dict[str, str | None] = {}  # of each module: the constant that holds its exports; None: on the way
        self.parts: list[str] = []

    def add(self, module: str) -> str:
        """Join a module after those that it imports; the constant that holds its exports."""
        if module in self._names:
            name = self._names[module]
            if name is None:
                raise LinkError(f"{module} imports itself, by way of what it imports")
            return name
        self._names[module] = None
        text = IMPORT.sub(lambda found: self._import(module, found), self._read(module))
        exported = EXPORT.findall(text)
        text = EXPORT.sub("", text)
        for line in OTHER.findall(text):
            raise LinkError(f"{module}: cannot join `{line}`")
        name = self._names[module] = f"module_{len(self.parts)}"
        self.parts.append(f"// {module}\nconst {name} = (() => {{\n{text}\nreturn {{ {', '.join(exported)} }}\n}})()\n")
        return name

    def _import(self, module: str, found: re.Match[str]) -> str:
        name = self.add(posixpath.normpath(posixpath.join(posixpath.dirname(module), found[2])))
        names = re.sub(r"(\w+)\s+as\s+(\w+)", r"\1: \2", found[1] or "")
        return f"const {{{names}}} = {name}" if names else ""
