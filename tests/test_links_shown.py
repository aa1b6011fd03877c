"""A link whose text is another place's address says where it leads."""

import pytest

from chatapp.assistant.links import destination
from chatapp.assistant.markdown import GrowingAnswer, render

EVIL = "https://evil.example/login"
LIES = [
    "https://bank.example",
    "HTTPS://Bank.Example/login?x=1",
    "bank.example",
    "www.bank.example",
    "www.bank.museum",
    "bank.example/evil.example",
    "bank.example login",
    "Log in at bank.example",
    "bank.example.",
    "(bank.example)",
    "→ bank.example",
    "bank.co.uk",
    "log in at https://bank.example now",
    "https://evil.example@bank.example/",
    "ada@bank.example",
    "mailto:ada@bank.example",
    "https://10.0.0.1",
    "https://[::1]/",
    "https://localhost",
    "https://bank",
    "https:/bank.example",
    "https:\\\\bank.example",
    "//bank.example",
    "https://b\u200bank.example",
    "https://b\ufe0fank.example",
    "https://b\u034fank.example",
    "https://bank\u2800.example",
    "https://bank\uff0eexample",
    "https://bank\u3002example",
    "https://evil.example and https://bank.example",
    "https://bank.example:8443",
    "http://evil.example.bank.example",
    "https://notevil.example",
    "xn--bnk-6cd.com",
]
HONEST = [
    "https://evil.example/login",
    "evil.example",
    "www.evil.example",
    "docs.evil.example",
    "our login",
    "Log in: quick, safe.",
    "e.g. here",
    "v1.10",
    "3.11",
    "README.md",
    "settings.py",
    "nginx.conf",
    "asyncio.run",
    "np.array",
    "node.js",
    "a.b.c",
    "@ada.lovelace",
    "C:\\Users\\ada.txt",
    "",
]


@pytest.mark.parametrize("text", LIES)
def test_another_address_in_the_text_is_answered_by_the_true_one(text: str) -> None:
    assert destination(text, EVIL) == "evil.example"
    if not set(text) & set("[]\\"):  # these mean something to Markdown
        assert "</a> (evil.example)" in render(f"[{text}](<{EVIL}>)")


@pytest.mark.parametrize("text", HONEST)
def test_other_texts_stay_alone(text: str) -> None:
    assert destination(text, EVIL) == ""
    assert "(" not in render(f"[{text}]({EVIL})")


@pytest.mark.parametrize(
    "url",
    [
        "https://medium.com/@ada.lovelace/post",
        "https://web.archive.org/web/2026/https://bank.example/",
        "https://evil.example/?next=https://bank.example",
    ],
)
def test_an_address_that_is_its_own_text_stays_alone(url: str) -> None:
    assert destination(url, url) == "" == destination(f"see {url}", url)
    assert "(" not in render(f"<{url}>")


@pytest.mark.parametrize(
    ("markdown", "lies"),
    [
        (f"[`https://bank.example`]({EVIL})", True),
        (f"[**bank**.example]({EVIL})", True),
        (f"![bank.example]({EVIL})", True),
        ("<https://evil.example/login>", False),
        ("[bank.example](../knowledge/x)", False),
    ],
)
def test_code_pictures_addresses_and_citations(markdown: str, lies: bool) -> None:
    assert ("(evil.example)" in render(markdown)) is lies


def test_foreign_letters_are_shown_as_dns_writes_them() -> None:
    assert destination("https://bank.example", "https://b\u0430nk.example/") == "xn--bnk-6cd.example"
    assert destination("our b\u0430nk.example", "https://b\u0430nk.example/") == ""
    assert destination("https://bank.example", "https://[::1/") == "?"
    assert destination("mail ada@bank.example", "mailto:eve@evil.example") == "evil.example"


def test_while_it_grows_the_shown_text_only_grows() -> None:
    text = f"Go to [https://bank.example]({EVIL}) now."
    answer, before = GrowingAnswer(), ""
    for letter in text:
        answer.feed(letter)
        for _, html in answer.changed():
            shown = html.removesuffix("</p>")
            assert shown.startswith(before), (before, shown)
            before = shown
    assert before.endswith("https://bank.example</a> (evil.example) now.")
