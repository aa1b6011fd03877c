"""Modules joined into one script: in their order, with their own names, and nothing half understood."""

import re

import pytest

from chatapp.config import asset_dir
from chatapp.staticfiles import PAGE_SCRIPTS, SHEETS, LinkError, joined

STATIC = asset_dir("static")


def linked(**modules: str) -> str:
    """The script of the entry `app`; `lib_x` is lib/x.js."""
    files = {f"{name.replace('_', '/')}.js": text for name, text in modules.items()}
    return joined("app.js", files.__getitem__)


def test_each_module_comes_once_after_what_it_imports() -> None:
    script = linked(
        app='import { two } from "./lib/two.js"\nimport { one } from "./lib/one.js"\nrun(one, two)',
        lib_one='export const one = 1\nconsole.log("one")',
        lib_two='import { one as first } from "../lib/one.js"\nexport const two = first + 1',
    )
    assert re.findall("^// (.*)$", script, re.M) == ["lib/one.js", "lib/two.js", "app.js"]
    assert "const { one: first } = module_0" in script and script.count('console.log("one")') == 1
    assert "import" not in script and "export" not in script


def test_what_is_exported_is_what_comes_back() -> None:
    script = linked(
        app='import {\n  A,\n  b, c,\n} from "./x.js"\nimport "./effects.js"',
        x="export class A {}\nexport function b() {}\nexport async function c() {}\nexport const d = 1\nconst own = 2",
        effects="document.title = 1",
    )
    assert "return { A, b, c, d }" in script and script.index("document.title") < script.rindex("const {")
    assert re.search(r"const \{\s*A,\s*b, c,\s*\} = module_0", script)


@pytest.mark.parametrize(
    "line",
    [
        "export default 1",
        "export { a }",
        "export let a = 1",
        'export * from "./b.js"',
        'import a from "./b.js"',
        'import * as a from "./b.js"',
        'import { a } from "elsewhere"',
        'import { a } from "https://elsewhere/a.js"',
        'import("./b.js")',
    ],
)
def test_what_it_does_not_know_is_refused_by_name(line: str) -> None:
    with pytest.raises(LinkError, match=r"app\.js: cannot join `(import|export)"):
        linked(app=line, b="export const a = 1")


def test_circles_are_refused_by_name() -> None:
    with pytest.raises(LinkError, match=r"app\.js imports itself"):
        linked(app='import { b } from "./b.js"', b='import { a } from "./app.js"')


def test_every_page_names_scripts_and_sheets_that_are_joined() -> None:
    """What a worker keeps for reading offline is all that pages ask for; the first run needs no second time."""
    templates = asset_dir("templates")
    text = "".join(path.read_text() for path in templates.rglob("*.html"))
    scripts = set(re.findall(r"static\('(js/[^']+)'\)", text))
    assert scripts == {*PAGE_SCRIPTS, "js/first-run.js", "js/check/network-test.js"}
    sheets = {path.relative_to(STATIC).as_posix() for path in (STATIC / "css").iterdir()}
    others = {"css/noscript.css", "css/pages.css", "css/people.css", "css/connection.css"}  # of other pages
    others |= {"css/monitor.css", "css/way.css", "css/knowledge.css"}  # of the monitor, the network test, the documents
    assert sheets == {*SHEETS, *others}, "each other is joined"


def test_what_two_entries_share_holds_nothing_between_them() -> None:
    """/connection runs two scripts, each with a copy: so none of what both import may keep anything that changes."""
    both = [set(re.findall("^// (js/.*)$", joined(entry, read), re.M)) for entry in ("js/app.js", "js/check/check.js")]
    shared = both[0] & both[1]
    assert shared == {"js/chat/clipboard.js", "js/chat/words.js"}
    for name in shared:
        kept = re.findall(r"^(?:let|var) .*|^const \w+ = new (?!WeakMap).*", (STATIC / name).read_text(), re.M)
        assert kept == [], f"{name} keeps {kept}"


def read(name: str) -> str:
    return "export const states = {}" if name == "js/brought.js" else (STATIC / name).read_text()
