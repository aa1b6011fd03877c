"""Colours of code: keywords in `b`, strings in `u`, comments in `i`, numbers and defined names in `var`.

Short elements and few of them, since all HTML of an answer is stored and sent. Not by Pygments: some of its lexers need
seconds for 20 kB of a few repeated characters, during which nothing else would run. Here one pattern for each family of
languages goes through the code once and does not backtrack.
"""

import keyword
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from html import escape

LONGEST = 20_000
"""Characters, which take 4 ms. Longer code stays without colours."""
MOST_GROWTH = 1.6
"""Most growth of a block's HTML; beyond it one kind after the other is left out, then all."""
FRAME = 150
"""Characters of HTML around the code."""

Span = tuple[int, int, str]

_HASH = r"(?P<i>(?<!\S)\#[^\n]*+)"
_SLASHES = r"(?P<i>//[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/)?)"
_DOUBLE = r'"(?:[^"\\\n]|\\.)*+"?'
_SINGLE = r"'(?:[^'\\\n]|\\.)*+'?"
_QUOTED = f"(?P<u>{_DOUBLE}|{_SINGLE})"
_NUMBER = r"(?P<var>\b\d[\w.]*+)"
_WORD = r"(?P<word>[A-Za-z_$][\w$]*+)"
_DASHED_WORD = r"(?P<word>[A-Za-z_$][\w$-]*+)"
_TRIPLE = r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*+(?:""")?' + "|" + r"'''(?:[^'\\]|\\[\s\S]|'(?!''))*+(?:''')?"
_TEMPLATE = r"`(?:[^`\\]|\\[\s\S])*+`?"
_CHARACTER = r"'(?:[^'\\\n]|\\[^\n]{1,9}?)'"
_PATTERNS = {
    "python": rf"(?P<i>\#[^\n]*+)|(?P<u>(?:\b[rbfuRBFU]{{1,2}})?+(?:{_TRIPLE}|{_DOUBLE}|{_SINGLE}))|{_NUMBER}|{_WORD}",
    "script": rf"{_SLASHES}|(?P<u>{_DOUBLE}|{_SINGLE}|{_TEMPLATE})|{_NUMBER}|{_WORD}",
    "c": rf"{_SLASHES}|(?P<u>{_DOUBLE}|{_CHARACTER}|{_TEMPLATE})|{_NUMBER}|{_WORD}",
    "shell": rf"{_HASH}|(?P<u>{_DOUBLE}|{_SINGLE})|{_DASHED_WORD}",
    "nginx": rf"{_HASH}|{_QUOTED}|(?:^|(?<=[;{{]))[ \t]*+(?P<b>[a-z_]++)|{_DASHED_WORD}",
    "yaml": rf"{_HASH}|^[ \t-]*+(?P<b>\w[\w.-]*+)(?=[ ]*:(?:\s|\Z))|{_QUOTED}|(?P<var>(?<=\s)\d[\d.]*+(?!\S))"
    rf"|{_DASHED_WORD}",
    "ini": r"(?P<i>^[ \t]*+[\#;][^\n]*+|(?<=\s)\#[^\n]*+)|(?P<b>^[ \t]*+[\w.-]++(?=[ ]*=)|^\[[^\n]*+)"
    rf"|{_QUOTED}|{_NUMBER}|{_DASHED_WORD}",
    "json": rf'(?P<b>"(?:[^"\\\n]|\\.)*+"(?=[ ]*:))|(?P<u>{_DOUBLE})|{_NUMBER}|{_WORD}',
    "sql": rf"(?P<i>--[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/)?)|(?P<u>'[^']*+'?)|{_NUMBER}|{_WORD}",
    "markup": r"(?P<i><!--(?:[^-]|-(?!->))*+(?:-->)?)|(?P<b></?[A-Za-z][\w:-]*+)|(?P<u>(?<==)\"[^\"\n]*+\"?)",
    "css": rf"(?P<i>/\*(?:[^*]|\*(?!/))*+(?:\*/)?)|{_QUOTED}|(?P<b>\b[A-Za-z][A-Za-z-]*+(?=:[ ])|@[\w-]++)"
    rf"|{_NUMBER}|{_DASHED_WORD}",
    "diff": r"(?P<u>^\+[^\n]*+)|(?P<i>^-[^\n]*+)|(?P<b>^@@[^\n]*+)",
}
_SCRIPT = """
    async await break case catch class const continue default delete do else export extends finally for from
    function if import in instanceof interface let new null of return static super switch this throw true false try
    type typeof undefined var void while yield enum implements private public protected readonly as
"""
_C = """
    break case catch char class const continue default do double else enum extends final finally float for if
    implements import int interface long new null nullptr package private protected public return short static
    struct super switch this throw true false try typedef union unsigned using namespace template void while bool
    auto include define virtual override
"""
_GO = """
    break case chan const continue default defer else fallthrough for func go goto if import interface map nil
    package range return select struct switch type var true false
"""
_RUST = """
    as async await break const continue crate else enum extern false fn for if impl in let loop match mod move mut
    pub ref return self Self static struct super trait true type unsafe use where while dyn
"""
_SHELL = """
    if then else elif fi for in do done while until case esac function return export local exit echo cd sudo set
    source FROM RUN COPY ADD CMD ENTRYPOINT ENV EXPOSE WORKDIR USER ARG VOLUME AS
"""
_SQL = """
    select from where and or not in is null as on join left right inner outer full cross group by order having limit
    offset insert into values update set delete create table index view alter add drop primary key foreign
    references default unique constraint distinct union all case when then else end exists between like desc asc
    begin commit rollback with if returning
"""
_LANGUAGES = {
    "python py python3": ("python", " ".join(keyword.kwlist)),
    "javascript js jsx typescript ts tsx mjs": ("script", _SCRIPT),
    "c h cpp c++ java csharp cs kotlin swift php": ("c", _C),
    "go golang": ("c", _GO),
    "rust rs": ("c", _RUST),
    "bash sh shell zsh dockerfile": ("shell", _SHELL),
    "nginx": ("nginx", "on off"),
    "yaml yml": ("yaml", "true false null"),
    "ini toml conf": ("ini", "true false"),
    "json jsonc": ("json", "true false null"),
    "sql sqlite postgresql mysql": ("sql", _SQL),
    "html xml svg": ("markup", ""),
    "css": ("css", ""),
    "diff patch": ("diff", ""),
}
_BEFORE_NAMES = frozenset(("def", "class", "function", "func", "fn", "struct", "interface", "trait"))


@lru_cache(maxsize=64)
def _rules(language: str) -> tuple[re.Pattern[str], frozenset[str], bool] | None:
    """Return pattern, keywords, and True if their case counts."""
    for names, (family, words) in _LANGUAGES.items():
        if language in names.split():
            return re.compile(_PATTERNS[family], re.MULTILINE), frozenset(words.split()), family != "sql"
    return None


def coloured(code: str, language: str) -> str:
    """Return the code as HTML, in colours if the language is known."""
    plain = escape(code, quote=False)
    rules = _rules(language.lower()[:20]) if len(code) <= LONGEST else None
    if rules is None:
        return plain
    spans = list(_joined(_spans(code, *rules), code))
    for left_out in ("", "var", "b"):
        spans = [span for span in spans if span[2] != left_out]
        html = _html(code, spans)
        if len(html) + FRAME <= MOST_GROWTH * (len(plain) + FRAME):
            return html
    return plain


def _spans(code: str, pattern: re.Pattern[str], words: frozenset[str], is_exact: bool) -> Iterator[Span]:
    before = ""
    for found in pattern.finditer(code):
        group = kind = found.lastgroup or ""
        if group == "word":
            word = found.group(group)
            is_keyword = (word if is_exact else word.lower()) in words
            kind = "b" if is_keyword else "var" if before in _BEFORE_NAMES else ""
            before = word
        if kind:
            yield *found.span(group), kind


def _joined(spans: Iterator[Span], code: str) -> Iterator[Span]:
    """Join neighbours of a kind with only spaces between them."""
    start, end, kind = 0, 0, ""
    for span in spans:
        if span[2] == kind and not code[end : span[0]].strip():
            end = span[1]
            continue
        if kind:
            yield start, end, kind
        start, end, kind = span
    if kind:
        yield start, end, kind


def _html(code: str, spans: Sequence[Span]) -> str:
    parts, at = [], 0
    for start, end, kind in spans:
        text = escape(code[start:end], quote=False)
        parts.append(f"{escape(code[at:start], quote=False)}<{kind}>{text}</{kind}>")
        at = end
    return "".join([*parts, escape(code[at:], quote=False)])
