"""Wrong passwords at an account from one address: after some, each further one must wait, longer every time.

Who owns the account is never locked out: a browser that signed in before is known and does not wait, nor does anybody
whose address says nothing, as all people behind a proxy that is not declared have the same.
"""

import time
from ipaddress import ip_address

from chatapp.cache import Cache
from chatapp.fair_queue import prefix

FREE = 5  # wrong ones without a wait
LONGEST_EXPONENT = 6  # of two, in seconds
FORGOTTEN_S = 900.0  # after the last wrong one
MOST_PAIRS, PAIR_BYTES = 10_000, 300
UNDECLARED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA")  # headers of proxies


class TooSoon(Exception):
    """The next password must wait. `retry_s`: how long."""

    def __init__(self, retry_s: float) -> None:
        super().__init__("too many wrong passwords")
        self.retry_s = retry_s


class Guesses:
    """Recent wrong passwords, by account and address, in this worker."""

    def __init__(self) -> None:
        # Number of wrong ones, and the time of the last (monotonic).
        self._wrong: Cache[tuple[str, str], tuple[int, float]] = Cache(MOST_PAIRS, MOST_PAIRS * PAIR_BYTES)

    def count(self, email: str, address: str) -> None:
        """Count an attempt, before it is looked at: many at once would all pass else. Raises TooSoon."""
        key, now = self._key(email, address), time.monotonic()
        number, at = self._wrong.get(key) or (0, now)
        number = number if now - at < FORGOTTEN_S else 0
        wait_s = 2.0 ** min(number - FREE, LONGEST_EXPONENT) if number >= FREE else 0.0
        if at + wait_s > now:
            raise TooSoon(at + wait_s - now)
        self._wrong.put(key, (number + 1, now), PAIR_BYTES)

    def forget(self, email: str, address: str) -> None:
        """Forget them: the password was right, or it was not looked at."""
        self._wrong.drop(self._key(email, address))

    @staticmethod
    def _key(email: str, address: str) -> tuple[str, str]:
        return email.lower()[:320], prefix(address)


def tells_people_apart(environ: dict[str, object], trusts_proxies: bool) -> bool:
    """Return True if the address of a request is one person's: no loopback, and no proxy that is not declared."""
    if trusts_proxies:
        return True
    try:
        peer = ip_address(str(environ.get("REMOTE_ADDR", "")))
    except ValueError:  # a unix socket
        return False
    # A stranger may send these headers, too: they are a proxy's only from a network like ours.
    return not peer.is_loopback and not (peer.is_private and any(header in environ for header in UNDECLARED))
