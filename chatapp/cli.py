"""Thin commands into the rooms. PORT, HOST and DATA_DIR, and every CHATAPP_ setting, come from the environment."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from chatapp.config import ConfigError, Settings, describe, load

if TYPE_CHECKING:
    from chatapp.house import House


class Stop(click.ClickException):
    """Ends a command with a sentence and exit code 1."""


def _settings() -> Settings:
    try:
        return load(os.environ)
    except ConfigError as error:
        raise Stop(str(error)) from None


def _house() -> House:
    """The rooms, put together by this process for one command."""
    from chatapp import create_app

    settings = _settings()
    try:
        house: House = create_app(settings).extensions["chatapp"]
    except OSError as error:
        raise Stop(f"DATA_DIR={settings.data_dir}: {error.strerror}. Name a folder that can be written.") from None
    return house


@click.group()
def main() -> None:
    """chatapp: a chat with an AI assistant that works on every network."""


@main.command()
def serve() -> None:
    """Migrate, then serve in the foreground until TERM."""
    _settings()  # a wrong one is told before anything heavy is loaded
    # Patches the library, hence before anything else is imported. The workers are forked from this process and share
    # what it has loaded.
    from chatapp.server import Gunicorn

    house = _house()
    _seed(house)
    print(_welcome(house), flush=True)
    house.store.close()  # no connection to a database may be carried over a fork
    Gunicorn().run()


def _seed(house: House) -> None:
    """Make the first admin from the settings, where there is nobody yet."""
    from chatapp import auth
    from chatapp.store import AlreadySetUp

    settings = house.settings
    if not settings.admin_email or not house.store.people.is_empty():
        return
    try:
        house.auth.first_run(settings.admin_name, settings.admin_email, settings.admin_password)
    except auth.Refused as error:
        raise Stop(f"CHATAPP_ADMIN_{error.field.upper()}: {error.message}") from None
    except AlreadySetUp:
        pass  # another start was faster


def _welcome(house: House) -> str:
    from chatapp import auth

    settings = house.settings
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    address = settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    if not settings.public_url:
        address += settings.url_prefix
    lines = [f"chatapp serves on {address}/", f"Data: {settings.data_dir}"]
    if house.store.people.is_empty():
        code = auth.first_run_code(settings.data_dir)
        lines.append(f"First: open {address}/first-run and make your account.")
        lines.append(f"From another machine it asks for this code: {code}")
    return "\n".join(lines)


@main.group()
def admin() -> None:
    """People who can sign in."""


@admin.command("create")
@click.option("--name", required=True)
@click.option("--email", required=True)
@click.option("--password", required=True)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def create_admin(name: str, email: str, password: str, as_json: bool) -> None:
    """Make an admin."""
    from chatapp import auth
    from chatapp.store import EmailTaken

    house = _house()
    try:
        name, email = auth.checked_person(name, email, password)
        person = house.store.people.add_admin(name, email, auth.hash_password(password))
    except auth.Refused as error:
        raise Stop(f"--{error.field}: {error.message}") from None
    except EmailTaken:
        raise Stop(f"--email: {email} has an account already; see `chatapp admin reset-password`.") from None
    (house.settings.data_dir / auth.CODE_FILE).unlink(missing_ok=True)
    report = {"id": person.uuid, "name": person.name, "email": person.email}
    print(json.dumps(report) if as_json else f"{person.name} <{person.email}> can sign in now.")


@admin.command("reset-password")
@click.option("--email", required=True)
@click.option("--password", required=True)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def reset_password(email: str, password: str, as_json: bool) -> None:
    """Set another password and end the person's sessions."""
    from chatapp import auth

    house = _house()
    try:
        auth.checked_person("-", email, password)
    except auth.Refused as error:
        raise Stop(f"--{error.field}: {error.message}") from None
    if not house.store.people.set_password(email, auth.hash_password(password)):
        raise Stop(f"--email: nobody has the address {email}.")
    print(json.dumps({"email": email}) if as_json else f"{email} can sign in with the new password.")


@main.command("config")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def show_config(as_json: bool) -> None:
    """Every setting with value, source and meaning."""
    rows = describe(_settings(), os.environ)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        unit = f" {row.unit}" if row.unit else ""
        print(f"{row.name} = {row.value or '(none)'}{unit if row.value else ''}  [{row.source}]\n    {row.meaning}")


if __name__ == "__main__":
    main()
