"""What is shown of an answer that is still written only grows: it is the whole rendering, cut somewhere."""

import random
import time
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from lab.asking import answer_html

from chatapp.assistant.markdown import GrowingAnswer

WORDS = [
    "alpha",
    "beta,",
    "gamma.",
    "2",
    "3.5",
    "(x)",
    "snake_case",
    "a*b",
    "AT&T",
    "&amp;",
    "5",
    "<",
    "6",
    '"so"',
    "[sic]",
    "[1]",
    "fin!",
    "\\*no\\*",
    "a\\",
    "x_",
    "~",
    "2*3",
]
WORDS += ["<http://a.b/c>", "![pic](http://a.b/c.png)", "**注意（重要）**です", "日本語", "[1](../knowledge/start#x)"]
MARKED = ["**bold words**", "*slanted*", "_under_", "***both***", "`code`", "``a ` b``", "~~gone~~", "**`x`**:"]
MARKED += ["[link](http://a.b/c_d)", '[**b** l](http://a.b "t")', "**a *b* c**"]
NEVER_CLOSED = ["*open", "**open wide", "`tick", "[half", "[a](b c", "**", "_x"]
CODE = ["x = 1", 'if "a":  # b', "", "`a`", "~~~", "``", "---", "  - y", "| a |", "# c"]


class Flat(HTMLParser):
    """HTML as a row of tags and texts, without the colours of code, which come when it is finished."""

    colours = ("b", "i", "u", "var")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.items: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.colours:
            return
        # A line of === makes the paragraph above it a heading: its words stay.
        self.items.append(("<", "p []" if tag in ("h3", "h4") else f"{tag} {attrs}"))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.colours:
            self.items.append((">", ""))

    def handle_data(self, data: str) -> None:
        if self.items and self.items[-1][0] == "text":
            data = self.items.pop()[1] + data
        self.items.append(("text", data))


def assert_cut_of(shown: str, whole: str, where: str) -> None:
    """What is shown is the whole up to some place, its open elements closed."""
    a, b = Flat(shown).items, Flat(whole).items
    same = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest = a[same:]
    if rest and rest[0][0] == "text":
        text = rest.pop(0)[1].rstrip()
        assert not text or (same < len(b) and b[same][0] == "text" and b[same][1].startswith(text)), (where, text)
    assert all(kind == ">" or (kind == "text" and not text.strip()) for kind, text in rest), (where, rest)


class Documents:
    """Random Markdown, as models write it and as nobody would."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def line(self, most: int = 8) -> str:
        lists = [WORDS, WORDS, WORDS, MARKED, MARKED, NEVER_CLOSED]
        return " ".join(self.chance.choice(self.chance.choice(lists)) for _ in range(self.chance.randrange(1, most)))

    def lines(self, form: str, most: int) -> str:
        return "".join(form.format(n=n + 1, line=self.line(5)) for n in range(self.chance.randrange(1, most)))

    def listed(self) -> str:
        after = [
            "",
            "\n",
            f"  more {self.line(3)}\n",
            f"  - inner {self.line(3)}\n",
            "\n  paragraph\n",
            "  ```\n  x\n  ```\n",
        ]
        items = (f"{self.chance.choice('-*+')} {self.line(5)}\n" for _ in range(self.chance.randrange(1, 5)))
        return "".join(item + self.chance.choice(after) for item in items)

    def code(self) -> str:
        content = "".join(self.chance.choice(CODE) + "\n" for _ in range(self.chance.randrange(5)))
        return f"```{self.chance.choice(['', 'py', 'sh x'])}\n{content}{self.chance.choice(['```', '````', ''])}\n"

    def table(self) -> str:
        columns = self.chance.randrange(1, 4)
        row = "| " + " | ".join(["{line}"] * columns) + " |\n"
        before = self.chance.choice(["", f"{self.line()}\n"])
        return f"{before}{row.format(line=self.line(3))}|{'---|' * columns}\n{self.lines(row, 4)}"

    def block(self) -> str:
        make: list[Callable[[], str]] = [
            lambda: "#" * self.chance.randrange(1, 5) + f" {self.line(4)}\n",
            lambda: self.lines("{line}\n", 4),
            lambda: self.lines("{line}\n", 4),
            self.listed,
            lambda: self.lines("{n}. {line}\n", 4),
            self.code,
            self.table,
            lambda: self.lines("> {line}\n", 4),
            lambda: self.chance.choice(["---\n", "***\n", "    code\n    more\n", "Title\n===\n", "| no table |\n"]),
            lambda: self.chance.choice(["1986 was\n", "-\n", "+1\n", "#tag\n", "--\n", "=\n"]),
        ]
        return self.chance.choice(make)()

    def document(self) -> str:
        blocks = range(self.chance.randrange(1, 7))
        return "".join(self.block() + self.chance.choice(["\n", "\n", ""]) for _ in blocks)


def check(seed: int, sizes: tuple[int, ...]) -> None:
    """Feed a random document in random pieces: at each moment a part of the whole, and at the end the whole."""
    documents = Documents(seed)
    document, answer = documents.document(), GrowingAnswer()
    shown: dict[int, str] = {}
    seen: list[tuple[int, str]] = []
    at = 0
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
    for at, html in seen:
        assert_cut_of(html, whole, f"{seed}: {document[max(0, at - 60) : at]!r} before {document[at : at + 30]!r}")


@pytest.mark.parametrize("seed", range(20))
def test_what_is_shown_is_always_a_part_of_the_whole(seed: int) -> None:
    check(seed, (2, 3, 9, 20))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_hundred_documents_in_small_pieces() -> None:
    for seed in range(1000, 1500):
        check(seed, (1, 1, 2, 3, 5, 9))


def shown_of(text: str) -> str:
    """What is shown while this is all there is."""
    answer = GrowingAnswer()
    answer.feed(text)
    return "\n".join(html for _, html in answer.changed())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Now **Try", "<p>Now </p>"),
        ("Now **Try** it", "<p>Now <strong>Try</strong> it</p>"),
        ("Now *x*", "<p>Now </p>"),
        ("Now *x* and", "<p>Now <em>x</em> and</p>"),
        ("```\ncode\n``", "<code>code\n</code>"),
        ("```\ncode\n``x", "<code>code\n``x</code>"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | **f", "<td>2</td>\n</tr>\n</tbody>\n</table>"),
        ("| a | b |\n|---|---", ""),
        ("Use `co", "<p>Use</p>"),
        ("See [the page](https://exa", "<p>See</p>"),
        ("See [the page](https://example.org/a_b) now", "the page</a> now</p>"),
        ("AT&am", "<p>AT</p>"),
        ("- one\n- **two", "<li>\n<p></p>\n</li>\n</ul>"),
        ("A **" + "long " * 60, "<strong>long long"),
        ("A 2*3 " + "long " * 60, "2*3 long"),
    ],
)
def test_marks_wait_until_it_is_known_what_they_are(text: str, shown: str) -> None:
    html = shown_of(text)
    assert shown in html and (shown or not html), html


def test_a_list_that_turns_out_to_be_loose_keeps_its_items() -> None:
    assert shown_of("- one\n- two\n\n- three").startswith(shown_of("- one\n- two\n").removesuffix("\n</ul>"))


def test_a_stop_in_the_middle_shows_what_was_held_back() -> None:
    answer = GrowingAnswer()
    answer.feed("| a |\n|---|\n| **bo")
    answer.changed()
    answer.finish()
    assert "**bo" in dict(answer.changed())[0]


def test_a_long_block_is_shown_whole_when_nothing_more_comes() -> None:
    answer = GrowingAnswer()
    answer.feed("word " * 2000)
    answer.changed()
    answer.feed("and the last words")
    looks = [answer.changed() for _ in range(6)]
    assert looks[0] == [], "it is long: not at each piece"
    assert ["and the last words" in news[0][1] for news in looks if news] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "** " * 7000,
        "[" * 20_000,
        "`" * 9 + "``` `` " * 3000,
        " " * 20_000 + "x",
        "](a " * 5000,
        "[a](" + " " * 1900 + "b c",
        "[a](b" + " " * 1900 + "c",
        "[a](<b" + " " * 1900 + "c" + "\n",
    ],
)
def test_nothing_but_marks_takes_no_time(text: str) -> None:
    answer, started = GrowingAnswer(), time.process_time()
    answer.feed("x " + text)
    assert answer.changed() is not None
    assert time.process_time() - started < 2, "it holds everybody for as long"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("これは**重要（じゅうよう）**です", "これは<strong>重要（じゅうよう）</strong>です"),
        ("他说**…）**。", "他说<strong>…）</strong>。"),
        ("**“重要”**です", "<strong>“重要”</strong>です"),
        ("~~取消。~~了", "<s>取消。</s>了"),
        ("한국어**강조(强调)**입니다", "한국어<strong>강조(强调)</strong>입니다"),
        ("（_x_）", "（<em>x</em>）"),
        ("**bold.**word", "**bold.**word"),
    ],
)
def test_emphasis_ends_beside_cjk_punctuation(text: str, html: str) -> None:
    assert answer_html(text) == [f"<p>{html}</p>"]
