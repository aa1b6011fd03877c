"""Markdown as people write it: addresses, task lists, callouts, formulas, `<br>`, references, footnotes."""

import re
import time
from unittest.mock import patch

import pytest
from lab.asking import answer_html
from test_settled import WORDS, Documents, assert_cut_of
from test_xss import dangers

from chatapp.assistant.markdown import GrowingAnswer, headings, render

ADDRESSES = [
    "https://a.b/c_d.",
    "(http://a.b/x(y))",
    "www.x.org,",
    "mailto:ada@x.org",
    "**https://a.b**",
    "_www.x.org/a_",
]
ADDRESSES += ["README.md", "http", "www", "https://", "https://a.b@c.d", "HTTPS://A.B/c*d*", "https://a.b/?q=$x$&amp;"]
FORMULAS = [
    "$x_1 * y_2$",
    "$$a_*b*$$",
    "\\(x_*y*\\)",
    "\\[ \\frac{1}{2} \\]",
    "$5 and $6",
    "$HOME/$USER",
    "US$5",
    "$",
    "$$",
]
FORMULAS += ["$\\text{if it is}$", "\\(", "\\[", "$a $", "$5.", "$x$y", "\\$5", "$$$", "$`a`$", "\\)", "$5-$6"]
BREAKS = ["a<br>b", "<br/>", "<BR />", "a<br />b", "<br x>", "<b", "<br", "<br "]
REFERENCES = ["[text][a]", "[b][]", "[c]", "word[^1]", "[^2]", "[^lost]", "[t][lost]", "[^1](http://a.b)", "![p][a]"]
ALL = [*ADDRESSES, *FORMULAS, *BREAKS, *REFERENCES]


class Kinds(Documents):
    """Random documents with all kinds."""

    def line(self, most: int = 8) -> str:
        if self.chance.random() < 0.5:
            return super().line(most)
        return " ".join(
            self.chance.choice(self.chance.choice([WORDS, ALL])) for _ in range(self.chance.randrange(1, 5))
        )

    def tasks(self) -> str:
        signs = ["[ ]", "[x]", "[X]", "[ ] [ ]", "[y]", "[]"]
        lines = (
            f"{self.chance.choice(['-', '1.', '  -'])} {self.chance.choice(signs)} {self.line(3)}\n" for _ in range(4)
        )
        return "".join(lines)

    def callout(self) -> str:
        kind = self.chance.choice(["NOTE", "TIP", "IMPORTANT", "WARNING", "caution", "OTHER"])
        after = self.chance.choice(["\n", "\n", " \n", " x\n", "\n>\n"])
        return f"> [!{kind}]{after}{self.lines('> {line}' + chr(10), 3)}"

    def formula(self) -> str:
        before = self.chance.choice(["", "So:\n", "- x\n\n  ", "> "])
        start, end = self.chance.choice([("$$", "$$"), ("\\[", "\\]"), ("$$", ""), ("\\[", "")])
        inner = "".join(
            self.chance.choice(["a_1", "=", "- b", "# c", "---", "| d |", "\\\\", "`e`"]) + "\n" for _ in range(3)
        )
        space = "> " if before == "> " else "  " if before.startswith("-") else ""
        return (
            before
            + f"{start}\n{inner}{end}{self.chance.choice(['', '.', ' and'])}\n".replace("\n", f"\n{space}").rstrip(" >")
            + "\n"
        )

    def definitions(self) -> str:
        below = self.chance.choice(["", "lazy\n", "\n    more\n"])
        note = f"[^{self.chance.choice('123')}]: {self.line(4)}\n{below}"
        link = f"[{self.chance.choice('abc')}]: http://a.b/{self.chance.choice('xyz')}\n"
        bad = "[a]: javascript:alert(1)\n[^1] : x\n[c]:\n"
        chosen = self.chance.choices([note, link, bad, "> " + link, "- " + note], [4, 4, 1, 1, 1], k=2)
        return "".join(chosen)

    def block(self) -> str:
        made = self.chance.random()
        if made < 0.4:
            return super().block()
        if made > 0.85:
            return self.definitions()
        return self.tasks() if made < 0.6 else self.callout() if made < 0.75 else self.formula()


def structure(html: str) -> tuple[list[str], str]:
    """Elements and letters, without those in which documents differ from answers: headings, paragraphs of tight lists,
    and --- below a definition, which an answer takes for text until it has ended."""
    elements = [name for name in re.findall(r"<(/?\w+)", html) if not re.fullmatch(r"/?(p|h\d|hr)", name)]
    return elements, re.sub(r"<[^>]*>|\s", "", html)


def check(seed: int, sizes: tuple[int, ...]) -> None:
    """Feed a random document in random pieces: at each moment a part of the whole without its definitions, which are
    resolved at the end, and then the whole."""
    documents = Kinds(seed)
    document, answer = documents.document(), GrowingAnswer()
    shown: dict[int, str] = {}
    at, seen = 0, []
    while at < len(document):
        size = documents.chance.choice(sizes)
        answer.feed(document[at : at + size])
        at += size
        shown |= dict(answer.changed())
        seen.append((at, "\n".join(html for _, html in sorted(shown.items()) if html)))
    answer.finish()
    shown |= dict(answer.changed())
    whole = "\n".join(html for html in answer_html(document) if html)
    assert "\n".join(html for _, html in sorted(shown.items()) if html) == whole, (seed, document)
    assert dangers(whole) == []
    assert structure(whole) == structure(render(document)), (seed, document)
    with patch.object(GrowingAnswer, "_resolve"):
        whole = "\n".join(html for html in answer_html(document) if html)
    for at, html in seen:
        assert_cut_of(html, whole, f"{seed}: {document[max(0, at - 60) : at]!r} before {document[at : at + 30]!r}")


@pytest.mark.parametrize("seed", range(60))
def test_random_documents_of_all_kinds(seed: int) -> None:
    check(seed, (1, 2, 3, 9, 20))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_documents_of_all_kinds() -> None:
    for seed in range(1000, 1500):
        check(seed, (1, 1, 2, 3, 5, 9))


def shown_of(text: str) -> str:
    """What is shown while this is all there is."""
    answer = GrowingAnswer()
    answer.feed(text)
    return "\n".join(html for _, html in answer.changed())


def link(url: str, text: str = "") -> str:
    return f'<a href="{url}" rel="noopener noreferrer nofollow">{text or url}</a>'


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("see https://a.b/c_d_e.", f"see {link('https://a.b/c_d_e')}."),
        ("(www.x.org)", f"({link('http://www.x.org', 'www.x.org')})"),
        ("https://a.b/x(y))", f"{link('https://a.b/x(y)')})"),
        ("mailto:ada@x.org!", f"{link('mailto:ada@x.org')}!"),
        ("**https://a.b/c**", f"<strong>{link('https://a.b/c')}</strong>"),
        ("http://localhost:8000/", link("http://localhost:8000/")),
        ("见https://a.b/c。然后", f"见{link('https://a.b/c')}。然后"),
        ("[https://a.b](https://c.d)", f"{link('https://c.d', 'https://a.b')} (c.d)"),
        ("`https://a.b`", "<code>https://a.b</code>"),
        ("https://bank.example@evil.example/", "https://bank.example@evil.example/"),
        ("README.md setup.py example.org a@b.c ftp://a.b", "README.md setup.py example.org a@b.c ftp://a.b"),
        ("javascript://a.b/%0aalert(1)", "javascript://a.b/%0aalert(1)"),
    ],
)
def test_typed_addresses_are_links_and_names_of_files_are_not(text: str, html: str) -> None:
    assert answer_html(text) == [f"<p>{html}</p>"]


@pytest.mark.parametrize(
    "text",
    [
        "$x_1 * y_2 * z$",
        "$$a_*b*$$",
        "\\(x_*y*\\)",
        "\\[a < b\\]",
        "$$\na\n=\n- b\n$$",
        "\\[\n# x\n---\ny\n\\]",
        "$\\text{if it is}$",
    ],
)
def test_formulas_are_shown_as_they_are_written(text: str) -> None:
    assert answer_html(text) == [f'<p><code class="math">{text.replace("<", "&lt;")}</code></p>']


@pytest.mark.parametrize(
    "text",
    ["$5 and $6", "$10-$20", "US$5 or US$6", "$HOME/$USER", "$5 a month (before: 6$)", "$ 5$", "costs 5$, not 6$"],
)
def test_prices_and_variables_are_no_formulas(text: str) -> None:
    assert answer_html(text) == [f"<p>{text}</p>"]


def test_a_formula_in_a_link_hides_no_address() -> None:
    assert "</a> (evil.example)" in answer_html("[$https://bank.example$](https://evil.example)")[0]


def test_tasks_callouts_and_breaks() -> None:
    (tasks,) = answer_html("- [ ] one\n- [x] two\n- [x](http://a.b)\n- [ ]")
    assert '<span class="task">☐</span> one' in tasks and '<span class="task">☑</span> two' in tasks
    assert tasks.count("task") == 2
    assert answer_html("> [!NOTE]\n> words") == [
        '<blockquote>\n<p><strong class="note">Note</strong><br>\nwords</p>\n</blockquote>'
    ]
    assert "[!NOTE] words" in answer_html("> [!NOTE] words")[0]
    assert "<th>a<br>\nb</th>" in answer_html("| a<br>b |\n|---|")[0]
    assert answer_html("<br onclick=x>") == ["<p>&lt;br onclick=x&gt;</p>"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://exam", "<p>see</p>"),
        ("see htt", "<p>see</p>"),
        ("see www.x.org and", f"<p>see {link('http://www.x.org', 'www.x.org')} and</p>"),
        ("so $x_1 * ", "<p>so</p>"),
        ("it costs $5 a", "<p>it costs</p>"),
        ("it costs $5 per month", "<p>it costs $5 per month</p>"),
        ("So:\n$$\na\n=\n- b\n", "<p>So:</p>"),
        ("a<br ", "<p>a</p>"),
    ],
)
def test_what_is_not_yet_known_waits(text: str, shown: str) -> None:
    assert shown_of(text) == shown


def test_references_and_footnotes_are_resolved_at_the_end() -> None:
    answer = GrowingAnswer()
    answer.feed("See [the docs][d] and[^n], [^m].\n\nUntouched [1](../knowledge/x).\n\n[d]: https://a.b/c\n")
    answer.feed("[^m]: second\n[^n]: first **note**\n\n    more of it\n")
    assert "[the docs][d] and[^n]" in dict(answer.changed())[0]
    answer.finish()
    assert answer.changed() == [
        (0, f"<p>See {link('https://a.b/c', 'the docs')} and<sup>[1]</sup>, <sup>[2]</sup>.</p>"),
        (2, ""),
        (3, ""),
        (4, "<hr>\n<ol>\n<li><p>first <strong>note</strong></p><p>more of it</p></li>\n<li><p>second</p></li>\n</ol>"),
    ]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("[a][x] [^2]\n\n[x]: javascript:alert(1)\n", ["<p>[a][x] [^2]</p>", "<p>[x]: javascript:alert(1)</p>"]),
        (
            "[bank.example][x]\n\n[x]: https://evil.example",
            [f"<p>{link('https://evil.example', 'bank.example')} (evil.example)</p>", ""],
        ),
        ("`[^1]`\n\n[^1]: kept", ["<p><code>[^1]</code></p>", "", "<hr>\n<ol>\n<li><p>kept</p></li>\n</ol>"]),
        ("a[^1]\n[^1]: see[^1]", ["<p>a<sup>[1]</sup></p>", "<hr>\n<ol>\n<li><p>see<sup>[1]</sup></p></li>\n</ol>"]),
    ],
)
def test_definitions_are_as_safe_as_other_text(text: str, html: list[str]) -> None:
    assert answer_html(text) == html


def test_documents_have_definitions_too() -> None:
    assert "</a></p>" in render("# T[^1]\n\n[a][b]\n\n[b]: http://a.b\n[^1]: note")
    assert [mark.anchor for mark in headings("# T[^1]\n\n[^1]: note")] == ["t"]


def test_half_marks_of_lists_and_quotes_wait() -> None:
    for text in ("- [", "- [x", "- [x]", "> [!NO", "> [!NOTE]", "> [!NOTE]\n"):
        assert "[" not in shown_of(text)


@pytest.mark.parametrize(
    "piece",
    [
        "$",
        "$a ",
        "$$a ",
        "\\[",
        "\\(a",
        "(www.",
        "https://",
        "<br",
        "- [ ] ",
        "> [!NOTE]\n",
        "\n$$\n",
        "\n\n[^a]: x",
        "[^a]",
        "\n[a]: b",
    ],
)
def test_nothing_but_these_marks_takes_no_time(piece: str) -> None:
    answer, started = GrowingAnswer(), time.process_time()
    answer.feed("x " + (piece * 20_000)[:20_000])
    answer.changed()
    answer.finish()
    assert time.process_time() - started < 2, "it holds everybody for as long"
