"""Growing Markdown: block by block, sanitised, the same as if it had been given at once."""

import random
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from lab.asking import answer_html

from chatapp.assistant import SHIPPED_KNOWLEDGE
from chatapp.assistant.markdown import GrowingAnswer, headings, render

DOCUMENTS = [
    "# Title\n\nA paragraph with **bold**, *slanted* and `code`,\nover two lines.\n\n"
    "- one\n- two\n\n  more of two\n- three\n\nEnd.",
    "Before\n```nginx\nserver { # not a heading\n\n}\n```\nAfter\n\n    indented <b>code</b>\n\n~~~\nnever closed",
    "| a | b |\n|---|--:|\n| 1 | **2** |\n\nText\n| c | d |\n|---|---|\n| 3 | 4 |\n\n"
    "> quote\nlazy\n\n---\n\nSetext\n===\n\n1. x\n2. y",
    "See [1](../knowledge/start#first-run) and [out](https://example.org/?a=1&b=2) and <mailto:a@b.c>.\r\n\r\n![pic](https://x.org/y.png)",
    "a\n-\nb\n#\nc\n#d\n2024\n*\n\n* * *\n\n- a\n* b\n+ c\n\n\n\n`open and **open",
]
HOSTILE = [
    "<script>alert(1)</script>\n\nText <img src=x onerror=alert(1)> more",
    "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>) [d](//evil.example) [e](/c/1)",
    "![x](javascript:alert(1)) ![y](https://evil.example/pixel.png) [![z](https://e.example/z.png)](https://e.example)",
    '[f](../knowledge/../c/x) [g](../knowledge/a"onclick=b) <javascript:alert(1)> [h](vbscript:x) [i](\\javascript:x)',
    '```"><script>alert(1)</script>\n</code></pre><script>alert(2)</script>\n```\n\n<a href="x" onclick="y">z</a>',
    "[j]: javascript:alert(1)\n\n[j] [k][j] <iframe src=//evil></iframe> <style>*{}</style> "
    "&lt;script&gt; &#60;script&#62;",
]


def grow(document: str, size: int = 1) -> Iterator[list[tuple[int, str]]]:
    """Feed a document in pieces and give what changed after each."""
    answer = GrowingAnswer()
    for at in range(0, len(document), size):
        answer.feed(document[at : at + size])
        yield answer.changed()
    answer.finish()
    yield answer.changed()


def shown_at_last(steps: Iterator[list[tuple[int, str]]]) -> list[str]:
    """The blocks that a reader sees after the last step."""
    shown = {index: html for step in steps for index, html in step}
    return [shown[index] for index in sorted(shown) if shown[index]]


class Inert(HTMLParser):
    """Fails on anything in HTML that could run, load or lead astray."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "img", "iframe", "style", "svg", "form", "object", "embed", "link", "meta"}
        for name, value in attrs:
            assert not name.startswith("on") and name not in {"src", "style", "srcdoc", "action"}
            if name == "href":
                assert value is not None and value.startswith(("http://", "https://", "mailto:", "../knowledge/"))
                assert "/../" not in value[3:]


# Growing Markdown


@pytest.mark.parametrize("document", [*DOCUMENTS, *HOSTILE])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_text_that_grows_piece_by_piece_ends_like_text_given_at_once(document: str, size: int) -> None:
    assert shown_at_last(grow(document, size)) == answer_html(document)


def test_random_markdown_grows_to_the_same_blocks() -> None:
    chance = random.Random(7)
    words = "a,foo ,\n,\n\n,- ,* ,#,> ,```,`,**,|,| a | b |\n,|---|---|\n,1. ,2. ,  ,    ,===,---,[x](http://a.b),[,](,<b>,~~~\n"
    parts = [*words.split(","), "_", "\\", "&amp;", "![i](http://a.b)"]
    for _ in range(300):
        document = "".join(chance.choice(parts) for _ in range(chance.randrange(3, 16)))
        assert shown_at_last(grow(document)) == [html for html in answer_html(document) if html], repr(document)


@pytest.mark.parametrize("document", [path.read_text() for path in sorted(SHIPPED_KNOWLEDGE.glob("*.md"))])
def test_a_shipped_document_grows_to_the_same_blocks(document: str) -> None:
    assert shown_at_last(grow(document, 97)) == answer_html(document)


@pytest.mark.parametrize("document", HOSTILE)
def test_hostile_text_is_inert_wherever_it_is_cut(document: str) -> None:
    for step in grow(document):
        for _, html in step:
            Inert().feed(html)
    Inert().feed(render(document))


def test_raw_html_is_shown_as_text() -> None:
    assert answer_html("<img src=x onerror=alert(1)>") == ["<p>&lt;img src=x onerror=alert(1)&gt;</p>"]


def test_a_finished_block_is_not_sent_again() -> None:
    document = "First paragraph.\n\n- a list\n- of two\n\n```\ncode\n```\n\nLast paragraph, " + "word " * 50
    highest, sent = -1, []
    for step in grow(document):
        for index, _ in step:
            assert index >= highest, "a block came after its successor had begun"
            highest = max(highest, index)
            sent.append(index)
    assert highest == 3
    answer = GrowingAnswer()
    answer.feed("One\n\nTwo\n\nThree")
    answer.changed()
    answer.feed(" more")
    assert [index for index, _ in answer.changed()] == [2]
    assert answer.changed() == []


def test_a_long_open_block_is_parsed_seldom_and_yet_shown_whole_at_the_end() -> None:
    document = "- an item of a list that does not end\n" * 400
    steps = list(grow(document, 20))
    assert len([step for step in steps if step]) < len(steps) / 2
    assert shown_at_last(iter(steps)) == answer_html(document)


def test_the_body_is_what_was_fed() -> None:
    answer = GrowingAnswer()
    for piece in ("a ", "", "b\r\n", "c"):
        answer.feed(piece)
    assert answer.body == "a b\nc"


@pytest.mark.parametrize(
    ("half", "hidden"),
    [
        ("See [the page](https://exa", "["),
        ("Now **bo", "**"),
        ("Use `co", "`"),
        ("Text\n-", "h2"),
        ("Text\n\n| a | b |\n|--", "|"),
        ("Text\n\n##", "#"),
    ],
)
def test_half_typed_marks_do_not_flash_up(half: str, hidden: str) -> None:
    answer = GrowingAnswer()
    answer.feed(half)
    assert all(hidden not in html for _, html in answer.changed())
    answer.finish()
    answer.changed()
    assert answer.body == half


def test_an_unclosed_fence_is_code_already() -> None:
    answer = GrowingAnswer()
    answer.feed("```nginx\nserver {")
    (_, html) = answer.changed()[0]
    assert html.startswith('<figure class="code"><figcaption><span>nginx</span>')
    assert '<button type="button" data-action="copy-code">Copy</button>' in html
    assert "<pre><code>server {" in html


def test_links_are_citations_or_marked_as_external() -> None:
    (html,) = answer_html("[1](../knowledge/start#first-run) [2](https://example.org) ![p](https://x.org/p.png)")
    assert '<a class="citation" href="../knowledge/start#first-run">1</a>' in html
    assert '<a href="https://example.org" rel="noopener noreferrer nofollow">2</a>' in html
    assert '<a href="https://x.org/p.png" rel="noopener noreferrer nofollow">p</a>' in html


def test_tables_are_aligned_without_style_attributes() -> None:
    (html,) = answer_html("| a | b |\n|---|--:|\n| 1 | 2 |")
    assert '<td align="right">2</td>' in html


def test_headings_of_a_document_have_unique_anchors_that_the_index_knows() -> None:
    text = "# Über **uns**\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n"
    assert [mark.anchor for mark in headings(text)] == ["ber-uns", "same", "same-2"]
    assert all(f'id="{mark.anchor}"' in render(text) for mark in headings(text))
