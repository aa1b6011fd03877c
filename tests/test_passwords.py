"""Passwords that are refused, wherever one is set: too short, common, or one's own name or address."""

import pytest
from flask import Flask
from flask_babel import Babel

from chatapp.accounts.passwords import LIST, common_passwords, password_problem

ADA = ("Ada Lovelace-King", "ada.lovelace@example.org")


def problem(password: str) -> str | None:
    """Why Ada may not have it."""
    app = Flask("passwords")
    Babel(app)
    with app.test_request_context():
        return password_problem(password, *ADA)


@pytest.mark.parametrize("password", ["", "x" * 9, "ä" * 9])
def test_short_ones(password: str) -> None:
    assert "at least 10 characters" in str(problem(password))


@pytest.mark.parametrize("password", ["password123", "Password123", " 1234567890", "QWERTYUIOP", "1q2w3e4r5t6y"])
def test_common_ones_in_any_case(password: str) -> None:
    assert "most common" in str(problem(password))


@pytest.mark.parametrize(
    "password",
    ["ada.lovelace@example.org", "ADA.LOVELACE", "Ada Lovelace King", "adalovelaceking", "ada_lovelace_king!"],
)
def test_the_own_name_and_address(password: str) -> None:
    assert "your own name" in str(problem(password))


@pytest.mark.parametrize(
    "password", ["correct horse battery staple", "!!!!!!!!!!!!", "ada.lovelace.1815 x", "пароль длинный", "# a comment"]
)
def test_all_others_are_good(password: str) -> None:
    assert problem(password) is None


def test_the_list_has_its_source_and_licence() -> None:
    text = LIST.read_text(encoding="utf-8")
    assert (
        "Django 5.2.19" in text and "zxcvbn 4.5.0" in text and (LIST.parent / "common_passwords-LICENSE.txt").exists()
    )
    assert len(common_passwords()) == 2424
    assert all(len(one) >= 10 and one == one.lower() for one in common_passwords())
