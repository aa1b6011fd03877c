"""Links of an answer: where they may lead, and what is said of one whose text names another place.

Not caught: an address that is spread over several links, or stands next to the link; hosts of one word, unless a scheme
is before them; endings that are those of files, too (`setup.py`, `README.md`).
"""

import re
import unicodedata
from urllib.parse import urlsplit

from chatapp.visible import without_unseen

CITATION = re.compile(r"\.\./knowledge(/[a-z0-9][a-z0-9_-]*(#[\w-]+)?)?", re.ASCII)
EXTERNAL = re.compile(r"(https?://[^/\\]|mailto:.)", re.IGNORECASE)
_DOTS = str.maketrans({"。": ".", "．": ".", "｡": "."})
# In a text: what follows a scheme, up to the next space, and the same without one at its beginning; then bare hosts.
_ADDRESS = re.compile(r"(?:\b[a-z][a-z0-9+.-]{1,20}:[/\\]+|^[/\\]{2,})(\S+)|\bmailto:(\S+)")
_BARE = re.compile(r"(?<![\w./@+-])(?:[\w.+-]+@)?((?:[\w-]+\.)+([a-z]{2,}|xn--[\w-]+))(?![\w-])")
_GENERIC = frozenset(
    """
    academy agency ai app bank biz blog click cloud club com company dev digital edu email example finance global gov
    group health info int internal invalid io link live local localhost mil mobi name net news online org page pro
    services shop site software store support systems tech test tools top vip web win world xyz zone
    """.split()  # noqa: SIM905
)
# Of two letters, and more often the ending of a file than a country's.
_FILES = frozenset("cc hs js md mk ml mm pl pm ps py rb rs sh so st tf ts vi".split())  # noqa: SIM905


def allowed_link(url: str) -> bool:
    """Return True if an answer may link to it: http, https, mailto, or a passage of the knowledge folder."""
    return bool(CITATION.fullmatch(url) or EXTERNAL.match(url))


def destination(text: str, url: str) -> str:
    """Return the host that a link leads to, if its text names another one; else ""."""
    if text.strip() == url:
        return ""
    host = _host(url)
    return host if any(not _is_akin(_bare(name), _bare(host)) for name in _named(text)) else ""


def _named(text: str) -> list[str]:
    """Return the hosts that a text names."""
    plain = without_unseen(unicodedata.normalize("NFKC", without_unseen(text)).translate(_DOTS)).strip().lower()
    found = [_authority(first) if first else second.rpartition("@")[2] for first, second in _ADDRESS.findall(plain)]
    bare = _BARE.findall(_ADDRESS.sub(" ", plain))
    found += [name for name, last in bare if name.startswith("www.") or _is_ending(last)]
    return [name for name in found if name]


def _authority(address: str) -> str:
    whole = re.split(r"[/\\?#]", address, maxsplit=1)[0].rpartition("@")[2]
    return whole if whole.startswith("[") else whole.partition(":")[0].rstrip(".,;!)")


def _is_ending(label: str) -> bool:
    return label in _GENERIC or label.startswith("xn--") or (len(label) == 2 and label not in _FILES)


def _is_akin(one: str, other: str) -> bool:
    """Return True for the same host, or one above the other."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _host(url: str) -> str:
    """Return the host of a link, as DNS writes it: foreign letters can look like ours."""
    try:
        parts = urlsplit(url)
        host = parts.path.rpartition("@")[2] if parts.scheme.lower() == "mailto" else parts.hostname or ""
    except ValueError:
        return "?"
    return _as_dns(host.lower()) or "?"


def _bare(host: str) -> str:
    return _as_dns(host).strip("[]").removeprefix("www.").rstrip(".")


def _as_dns(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host
