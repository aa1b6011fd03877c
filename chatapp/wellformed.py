"""Checks of a request's form: a valid Host, a bounded size of cookies, and answers to requests that gunicorn rejects.

Malformed requests get 400, or 414, 417, 431 or 501: from the middleware if gunicorn could parse them, else from
`answer_nonsense`.
"""

import re
from functools import lru_cache
from ipaddress import IPv6Address
from uuid import UUID

from gunicorn.http import errors

LONGEST_COOKIES = 8190  # characters of all cookies; gunicorn's own limit of a header line
LONGEST_SHOWN = 100  # characters of a client's text in a log line
LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
HOST = re.compile(rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>{LABEL}(?:\.{LABEL})*)\.?)(?::(?P<port>[0-9]{{0,5}}))?")
LONGEST_NAME = 253  # characters of a host's name (RFC 1035)
LONGEST_HOST = LONGEST_NAME + len(".:65535")
MOST_HOSTS = 256  # in the cache of checked ones

COOKIES = (
    "Your browser sends more than 8 kB of cookies to this address, which is more than this server takes. Nearly always"
    " other sites of the same domain have set them, such as a single sign-on. Delete this domain's cookies in the"
    " browser's settings, then reload. If they come back: the sign-on's operator can bind its cookies to one host.\n"
)
HEADERS = (
    f"A header of this request is longer than 8 kB, or there are too many. Most often these are cookies. {COOKIES}"
)
LINE = "The address of this request is longer than this server takes.\n"
MALFORMED = "This is not an HTTP request that this server understands.\n"
WRONG_HOST = (
    "The header Host of this request names no server: it must be a name or an address, with or without a port.\n"
)
EXPECTED = "This server does not do what the header Expect asks for.\n"
CODED = "This server takes no body in this transfer coding.\n"

# Status, reason phrase and text by gunicorn's error; the last one fits all.
ANSWERS: dict[type[Exception], tuple[int, str, str]] = {
    errors.LimitRequestHeaders: (431, "Request Header Fields Too Large", HEADERS),
    errors.LimitRequestLine: (414, "URI Too Long", LINE),
    errors.ExpectationFailed: (417, "Expectation Failed", EXPECTED),
    errors.UnsupportedTransferCoding: (501, "Not Implemented", CODED),
    errors.ParseException: (400, "Bad Request", MALFORMED),
}
PLAIN = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store, no-transform"),
]


def as_uuid(text: str) -> str:
    """Return a UUID in its usual form, or "" for any other text."""
    try:
        return str(UUID(text))
    except ValueError:
        return ""


def is_host(text: str) -> bool:
    """Return True for a valid Host header: a name with labels of at most 63 characters, or an address."""
    return len(text) <= LONGEST_HOST and _is_host(text)


@lru_cache(MOST_HOSTS)
def _is_host(text: str) -> bool:
    found = HOST.fullmatch(text)
    if found is None or int(found["port"] or 0) > 65535 or len(found["name"] or "") > LONGEST_NAME:
        return False
    try:
        return found["v6"] is None or bool(IPv6Address(found["v6"]))
    except ValueError:
        return False


def shown(text: object) -> str:
    """Return a client's text escaped and shortened for one log line."""
    whole = ascii(text)
    return whole if len(whole) <= LONGEST_SHOWN else f"{whole[:LONGEST_SHOWN]}… ({len(whole)})"


def answer_nonsense(error: BaseException) -> tuple[int, str, str] | None:
    """Return status, reason phrase and text for gunicorn's parse error, or None if it is not the client's."""
    server_errors = errors.ConfigurationProblem, errors.InvalidResponseHeader, errors.InvalidResponseHeaderName
    if not isinstance(error, errors.ParseException) or isinstance(error, server_errors):
        return None
    return next(answer for kind, answer in ANSWERS.items() if isinstance(error, kind))
