"""Static files as they are sent: joined, packed for who takes it, without comments, and still the same programs."""

import gzip
import http.client
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import brotli
import pytest
import quickjs
from lab.http import Client
from lab.processes import wait_for
from lab.server import Server

from chatapp.config import asset_dir
from chatapp.staticfiles import PAGE_SCRIPTS, SHEET, SHEETS, content_hash, minified

ROOT = Path(__file__).resolve().parents[1]
STATIC = asset_dir("static")
MODULES = sorted(path.relative_to(STATIC).as_posix() for path in (STATIC / "js").rglob("*.js"))
CORE = [m for m in MODULES if m.startswith("js/connection/")]
KEPT = {f"js/browser/{name}.js" for name in ("storage", "older", "offline", "worker")}  # on a page's disk
ALL = CORE + [m for m in MODULES if m.startswith("js/browser/") and m not in KEPT]
TAKES = {"Accept-Encoding": "gzip, deflate"}
BROWSERS = {"Accept-Encoding": "gzip, deflate, br, zstd"}
VERSION = content_hash(STATIC, asset_dir("templates"))

# The core, and with a page's ports and what tabs share. Reached, with 5 % room: what makes it more must be worth it.
MOST_CORE = (
    22_800  # of these 850 for the reports of attempts and messages (measures.js), 550 for the short form of patches
)
MOST_ALL = 30_200


@dataclass(frozen=True)
class Raw:
    """One answer, its body as it came over the wire."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(server: Server, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Raw:
    """One request that sends nothing but these headers (http.client would ask for identity)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return Raw(response.status, response.msg, response.read())
    finally:
        connection.close()


def address(name: str, version: str | None = None) -> str:
    """Where a static file is served."""
    return f"/static/{version or VERSION}/{name}"


@pytest.fixture
def apart(start_server: Callable[..., Server]) -> Server:
    """Each module by itself, as for debugging."""
    return start_server(assistant="off", static_joined="no")


@pytest.mark.parametrize("path", [address("js/app.js"), address("css/all.css"), address("favicon.svg"), "/worker.js"])
def test_gzip_for_who_takes_it_and_the_same_content_for_all(server: Server, path: str) -> None:
    plain = ask(server, path)
    assert plain.status == 200 and plain.headers["Content-Encoding"] is None
    for accepted in ("gzip", "gzip, deflate, zstd", "*", "gzip;q=0.1"):
        packed = ask(server, path, {"Accept-Encoding": accepted})
        assert (packed.status, packed.headers["Content-Encoding"]) == (200, "gzip"), accepted
        assert gzip.decompress(packed.body) == plain.body and len(packed.body) < len(plain.body)
        assert int(packed.headers["Content-Length"]) == len(packed.body)
        assert packed.headers["ETag"] != plain.headers["ETag"]
        for name in ("Content-Type", "Cache-Control", "Content-Security-Policy", "X-Content-Type-Options"):
            assert packed.headers[name] == plain.headers[name] != ""
    for refused in ("gzip;q=0", "br;q=0", "identity", "*, gzip;q=0", ""):
        answer = ask(server, path, {"Accept-Encoding": refused})
        assert answer.headers["Content-Encoding"] is None and answer.body == plain.body, refused
        assert int(answer.headers["Content-Length"]) == len(plain.body)
        assert answer.headers["Vary"] == "Accept-Encoding", "else a cache gives gzip to who cannot read it"


@pytest.mark.parametrize("accepted", [{}, TAKES])
@pytest.mark.parametrize("path", [address("js/app.js"), address("favicon.svg"), "/worker.js"])
def test_head_and_not_modified(server: Server, path: str, accepted: dict[str, str]) -> None:
    full = ask(server, path, accepted)
    head = ask(server, path, accepted, "HEAD")
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Content-Encoding", "ETag", "Vary", "Cache-Control"):
        assert head.headers[name] == full.headers[name], name
    same = ask(server, path, accepted | {"If-None-Match": full.headers["ETag"]})
    assert (same.status, same.body) == (304, b"")
    assert (same.headers["ETag"], same.headers["Vary"]) == (full.headers["ETag"], "Accept-Encoding")
    assert same.headers["Cache-Control"] == full.headers["Cache-Control"]
    assert ask(server, path, accepted | {"If-None-Match": '"another"'}).body == full.body
    other = {} if accepted else TAKES
    assert ask(server, path, other | {"If-None-Match": full.headers["ETag"]}).status == 200, "the other encoding"


def test_what_is_no_file_is_not_found(server: Server) -> None:
    for name in (
        "js/none.js",
        "js",
        "",
        "js/../js/app.js",
        "../pyproject.toml",
        "js/..%2f..%2fpyproject.toml",
        "JS/app.js",
    ):
        assert ask(server, address(name), TAKES).status in (404, 308), name


def test_pages_are_not_compressed(server: Server) -> None:
    """What is secret in them stands beside what others choose: their length would tell it (BREACH)."""
    answer = ask(server, "/sign-in", TAKES)
    assert answer.status == 200 and answer.headers["Content-Encoding"] is None
    assert b"csrf" in answer.body


def test_what_is_vendored_is_sent_as_it_is(server: Server) -> None:
    name = "vendor/htmx-4.0.1.min.js"
    assert gzip.decompress(ask(server, address(name), TAKES).body) == (STATIC / name).read_bytes()


def test_own_scripts_are_sent_without_comments_and_are_programs(server: Server, apart: Server) -> None:
    """QuickJS parses what is sent. (tests/test_shipped.py runs the rules in it, the browser's tests all of it.)"""
    for name in MODULES:
        served = ask(apart, address(name)).body.decode()
        assert not re.search(r"^\s*//|^\s+\S", served, re.M), name
    for name in (*PAGE_SCRIPTS, "js/first-run.js", "js/check/network-test.js"):
        quickjs.Context().eval(f"(() => {{{ask(server, address(name)).body.decode()}\n}})")


def test_private_fields_stay_on_lines_of_their_own() -> None:
    source = (
        "class A {\n  #one = 1 // first\n  #two = `a\n  b#c`\n\n  at(text) {\n    return /#\\/ /.test(text)\n  }\n}\n"
    )
    assert minified(source).strip() == "class A{#one=1\n#two=`a\n  b#c`\nat(text){return/#\\/ /.test(text)}}"


def test_the_connections_code_stays_small(apart: Server) -> None:
    """As it is sent: together, without comments, packed."""
    texts = {name: ask(apart, address(name)).body for name in ALL}
    core, everything = (len(gzip.compress(b"".join(texts[name] for name in names))) for names in (CORE, ALL))
    print(f"\nthe core {core / 1000:.1f} kB, with ports and tabs {everything / 1000:.1f} kB, gzip")
    assert len(CORE) >= 12 and len(ALL) >= 18
    assert core <= MOST_CORE and everything <= MOST_ALL


def test_a_first_visit_is_small(client: Client, server: Server) -> None:
    """Everything that a conversation's page loads before the worker comes: prints it, raw and as it is sent."""
    me = client
    page = me.open(me.create("hello").json["conversation"])
    links = {e.get(a) for e in page.walk() for a in ("href", "src") if (e.get(a) or "").startswith("/static/")}
    names = {"/".join(link.split("/")[3:]) for link in links}
    forms = {"plain": {}, "gzip": TAKES, "brotli": BROWSERS}
    wait_for(lambda: all(is_brotli(server, name) for name in names), 20, "the smallest form is made")
    sizes = {form: sum(len(ask(server, address(name), takes).body) for name in names) for form, takes in forms.items()}
    words = ", ".join(f"{form} {size / 1000:.1f} kB" for form, size in sizes.items())
    print(f"\n{len(names)} static files of a conversation's page: {words}")
    assert {"js/app.js", SHEET} <= names and len(names) <= 6
    assert sizes["brotli"] < 0.92 * sizes["gzip"] and sizes["gzip"] < sizes["plain"] / 3


def is_brotli(server: Server, name: str) -> bool:
    return ask(server, address(name), BROWSERS).headers["Content-Encoding"] == "br"


def test_brotli_goes_to_who_names_it_once_it_is_made(server: Server) -> None:
    name = address("js/app.js")
    plain = ask(server, name).body
    wait_for(lambda: is_brotli(server, "js/app.js"), 20, "it is made")
    packed = ask(server, name, BROWSERS)
    assert brotli.decompress(packed.body) == plain and packed.headers["Vary"] == "Accept-Encoding"
    assert packed.headers["ETag"] not in (ask(server, name, TAKES).headers["ETag"], ask(server, name).headers["ETag"])
    assert ask(server, name, BROWSERS | {"If-None-Match": packed.headers["ETag"]}).status == 304
    for others in ("*", "gzip, br;q=0", "gzip"):
        assert ask(server, name, {"Accept-Encoding": others}).headers["Content-Encoding"] == "gzip", others


def test_a_script_brings_the_table_and_the_words_of_its_pages_language(server: Server, client: Client) -> None:
    page = client.get("/").text
    script = client.get(address("js/app.js", f"{VERSION}-en")).text
    for brought in ('\\"status-reconnecting\\"', '\\"words\\"', '"attempt_failed"'):
        assert brought in script and brought.replace("\\", "") not in page, brought
    assert f"/static/{VERSION}-en/js/app.js" in page
    other = client.get(address("js/app.js", f"{VERSION}-xx"))
    assert other.status == 200 and "status-reconnecting" in other.text, "there is no translation into it"
    assert "immutable" in client.get(address("js/app.js", f"{VERSION}-en")).headers["Cache-Control"]
    assert "no-store" in other.headers["Cache-Control"], "there may be one tomorrow"


def test_the_sheets_are_one_in_their_order(server: Server) -> None:
    """Without comments and spare spaces: what is left of each stands there, sign by sign."""
    joined = ask(server, address(SHEET)).body.decode()
    sheets = [(STATIC / name).read_text() for name in SHEETS]
    assert all('"/*' not in sheet and "'/*" not in sheet for sheet in sheets), "a string that looks like a comment"
    strings = re.findall(r'"[^"\n]*"', "".join(sheets))
    assert not [text for text in strings if re.search(r"[:,] |[{};]", text)], "a string that would be altered"
    rules = "".join(re.sub(r"/\*.*?\*/", "", sheet, flags=re.S) for sheet in sheets)
    assert "".join(joined.split()) == "".join(rules.split()) and "/*" not in joined


def test_apart_each_module_is_a_file(apart: Server) -> None:
    """In another version of the address, because the same names say something else."""
    me = Client(apart.url).sign_in()
    page = me.get("/").text
    [script] = re.findall(r'src="(/static/[^"]+/js/app\.js)"', page)
    assert script == f"/static/{VERSION}apart-en/js/app.js" and SHEET not in page and SHEETS[0] in page
    answer = me.get(script)
    assert 'import{states}from"./brought.js"' in answer.text and "class Connection" not in answer.text
    assert "immutable" in answer.headers["Cache-Control"]
    brought = me.get(script.replace("app.js", "brought.js"))
    assert brought.status == 200 and brought.text.startswith("export const states={")
