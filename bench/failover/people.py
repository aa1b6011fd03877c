"""`python -m failover.people COUNT`: so many people in the database that the environment names, with one password."""

import os
import sys

from lab.server import PASSWORD

from chatapp import create_app
from chatapp.accounts import auth
from chatapp.config import load
from chatapp.parts import Parts


def email(number: int) -> str:
    """The address of a person of the rig."""
    return f"p{number}@example.org"


def main(count: int) -> None:
    """Make them."""
    parts: Parts = create_app(load(os.environ)).extensions["chatapp"]
    password = auth.hash_password(PASSWORD)  # once: it takes 0.1 s
    for number in range(count):
        parts.store.people.add_admin(f"Person {number}", email(number), password)


if __name__ == "__main__":
    main(int(sys.argv[1]))
