"""Colours of code: few elements, only on finished blocks of a known language, and no time for nonsense."""

import html
import re
import time

import pytest
from lab.asking import answer_html

from chatapp.assistant.colours import LONGEST, MOST_GROWTH, coloured
from chatapp.assistant.markdown import GrowingAnswer, render

SAMPLES = {
    "python": 'class Shelf:\n    """Books."""\n\n    def find(self, word: str) -> int:  # slow\n'
    '        return 1 if word in "abc" else 0\n',
    "bash": 'for f in *.txt; do\n  if [ -f "$f" ]; then\n    mv "$f" /tmp/ # away\n  fi\ndone\n',
    "json": '{\n  "name": "chatapp",\n  "private": true,\n  "ports": [80, 443]\n}\n',
    "yaml": 'services:\n  web:\n    image: nginx:1.25  # stable\n    ports:\n      - "80:80"\n    restart: always\n',
    "sql": "SELECT c.id, COUNT(o.id) AS orders\nFROM customers c\nWHERE c.at > '2024-01-01' -- new\nLIMIT 20;\n",
    "js": "// Adds.\nexport const add = (a, b) => {\n  const sum = `${a + b}`\n  return Number(sum) || 0\n}\n",
    "nginx": 'server {\n  listen 443 ssl; # TLS\n  location / {\n    proxy_set_header Connection "x";\n  }\n}\n',
    "rust": "fn first<'a>(x: &'a str) -> char {\n    let c = 'x'; // one\n    c\n}\n",
    "html": '<!-- a --><p class="b">x < y</p>\n',
    "css": "/* a */ .code b { color: red; margin: 2px }\n",
    "ini": "# a\n[section]\nname = 1\n",
    "diff": "@@ -1 +1 @@\n-old\n+new\n",
}
PIECES = [
    *"\"'`{(<>#-=:$|@&*!?;/\\+_ \t\n",
    "/*",
    "<!--",
    "a",
    "a ",
    "a.",
    "a-",
    "'a",
    '"a',
    " \n",
    "- ",
    "a: ",
    "a=",
    "1.",
    '"""',
    "\\\n",
    "u'",
    "a;",
]


@pytest.mark.parametrize("language", SAMPLES)
def test_code_keeps_its_text_and_grows_little(language: str) -> None:
    code = SAMPLES[language]
    found = coloured(code, language)
    assert re.sub(r"</?(?:b|i|u|var)>", "", found) == html.escape(code, quote=False)
    assert "<b>" in found or "<u>" in found
    whole, plain = (len(render(f"```{name}\n{code}```")) for name in (language, "text"))
    assert whole <= MOST_GROWTH * plain


def test_kinds_of_words() -> None:
    assert coloured("def f(x):  # add\n    return x + 1", "py") == (
        "<b>def</b> <var>f</var>(x):  <i># add</i>\n    <b>return</b> x + <var>1</var>"
    )
    dense = "0," * 1000
    assert coloured(dense, "c") == dense, "colours would multiply it"


@pytest.mark.parametrize("language", ["", "text", "brainfuck", 'py" onclick=x', "PYTHON" * 9])
def test_unknown_languages_and_long_code_stay_plain(language: str) -> None:
    assert coloured("if x: # <b>", language) == "if x: # &lt;b&gt;"
    assert "<i>" not in coloured("# a comment\n" * (LONGEST // 12 + 1), "python")


@pytest.mark.parametrize("language", SAMPLES)
def test_nonsense_takes_no_time(language: str) -> None:
    def taken(code: str) -> float:
        started = time.process_time()
        coloured(code, language)
        return time.process_time() - started

    for piece in PIECES:
        # The least of three: a garbage collection in the midst of it takes as long.
        assert min(taken((piece * LONGEST)[:LONGEST]) for _ in range(3)) < 0.2, piece


def test_colours_come_with_the_end_of_the_code() -> None:
    answer, words = GrowingAnswer(), "<b>return</b> <u>'words'</u>"
    answer.feed("```python\nreturn 'words'\n``")
    assert words not in dict(answer.changed())[0]
    answer.feed("`\n")
    assert words in dict(answer.changed())[0]
    answer.feed("\nText\n")
    answer.finish()
    assert [index for index, _ in answer.changed()] == [1]
    assert words in answer_html("```py\nreturn 'words'")[0]
    assert words in render("- a\n\n  ```py\n  return 'words'\n  ```")
    assert "<b>" not in answer_html("    return 'indented'")[0]
