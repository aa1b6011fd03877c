"""Passwords that are refused: too short, common, or the person's own name or address."""

from functools import cache
from pathlib import Path

from flask_babel import gettext as _

SHORTEST_PASSWORD = 10  # characters
LIST = Path(__file__).with_name("common_passwords.txt")


def password_problem(password: str, name: str = "", email: str = "") -> str | None:
    """Return why a person may not have this password, or None."""
    if len(password) < SHORTEST_PASSWORD:
        return str(_("The password needs at least %(least)s characters.", least=SHORTEST_PASSWORD))
    if password.strip().lower() in common_passwords():
        return str(_("This password is one of the most common ones, which are tried first. Choose another one."))
    own = {_reduced(one) for one in (name, email, email.partition("@")[0])} - {""}
    if _reduced(password) in own:
        return str(_("The password is your own name or e-mail address. Choose another one."))
    return None


@cache
def common_passwords() -> frozenset[str]:
    """Return the shipped list, in lower case."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("# "))


def _reduced(text: str) -> str:
    """Return letters and digits only, in lower case: `Ada Lovelace` and `ada.lovelace` are the same."""
    return "".join(char for char in text.lower() if char.isalnum())
