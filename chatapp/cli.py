"""The command line. Settings come from the environment: PORT, HOST, DATA_DIR and CHATAPP_…"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click
from click import ClickException

from chatapp import descriptors, port, strangers
from chatapp.config import DRILL_FAULTS, LONGEST_DRILL_S, ConfigError, describe, load

if TYPE_CHECKING:
    from chatapp.parts import Parts
    from chatapp.store import ListedPerson

NOTHING_SERVED = "DATA_DIR={}: no server has run with it. Name the running server's folder."
DRILL_SETTLE_S = 15.0  # from a drill's end to its report: clients reconnect, and report every two seconds


class Commands(click.Group):
    """All commands; each ends with a message if a setting, the port or the data directory is unusable."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, port.PortUnusable) as error:
            raise ClickException(str(error)) from None
        except Exception as error:  # any error may come from the data directory
            problem = _data_problem(error)
            if problem is None:
                raise
            raise ClickException(problem) from None


def _data_problem(error: Exception) -> str | None:
    """Return the problem of the data directory that caused an error; None if it has another cause."""
    if "chatapp.store" not in sys.modules:  # slow to import: only commands with a database have it
        return None
    from chatapp.store.migrate import problem_of

    problem = problem_of(load(os.environ).data_dir / "chat.db", error)
    return None if problem is None else str(problem)


def _served_parts() -> Parts:
    """Return the parts for a data directory with a database: another DATA_DIR would affect nobody."""
    settings = load(os.environ)
    if not (settings.data_dir / "chat.db").exists():
        raise ClickException(NOTHING_SERVED.format(settings.data_dir))
    return _parts()


def _parts() -> Parts:
    from chatapp import create_app

    settings = load(os.environ)
    try:
        parts: Parts = create_app(settings).extensions["chatapp"]
    except OSError as error:
        raise ClickException(
            f"DATA_DIR={settings.data_dir}: {error.strerror}. Name a folder that can be written."
        ) from None
    return parts


@click.group(cls=Commands)
@click.version_option(package_name="chatapp", prog_name="chatapp")
def main() -> None:
    """chatapp: a chat with an AI assistant that works on every network."""


@main.command()
def serve() -> None:
    """Migrate, then serve in the foreground until TERM."""
    settings = load(os.environ)  # reports a wrong one before the slow imports
    port.check(settings.host, settings.port)
    descriptors.raise_limit()  # each WebSocket needs one
    files = descriptors.allowed()
    if files < descriptors.FEWEST:
        raise ClickException(
            f"Only {files} files may be open (ulimit -n); {descriptors.FEWEST} are needed at least, 65536 are right."
        )
    gc.disable()  # imports leave no garbage; collections would take a tenth of the start
    # Patches the standard library, hence before anything else is imported. Workers are forked from this process and
    # share its memory.
    from chatapp import server

    parts = _parts()
    _add_first_admin(parts)
    settings, most = parts.settings, descriptors.for_strangers(files)
    shared = strangers.advice(settings.host, bool(settings.trusted_proxies), most)
    server.start_message = "\n".join(filter(None, (_welcome(parts), descriptors.advice(files), shared)))
    parts.store.close()  # SQLite connections must not cross a fork
    gc.enable()
    server.Gunicorn().run()


def _add_first_admin(parts: Parts) -> None:
    """Add the first admin from the settings if there are no people yet."""
    from chatapp.accounts import auth
    from chatapp.store import AlreadySetUp

    settings = parts.settings
    if not settings.admin_email or not parts.store.people.is_empty():
        return
    try:
        parts.auth.first_run(settings.admin_name, settings.admin_email, settings.admin_password)
    except auth.Refused as error:
        raise ClickException(f"CHATAPP_ADMIN_{error.field.upper()}: {error.message}") from None
    except AlreadySetUp:
        pass  # by another start at the same time


def _welcome(parts: Parts) -> str:
    from chatapp.accounts import keys

    settings = parts.settings
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    address = settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    if not urlsplit(address).path:  # PUBLIC_URL's path is the prefix
        address += settings.url_prefix
    lines = [f"chatapp serves on {address}/", f"Data: {settings.data_dir}"]
    if parts.store.people.is_empty():
        code = keys.first_run_code(settings.data_dir)
        lines.append(f"First: open {address}/first-run#code={code} and make your account.")
        lines.append(f"Where the page asks for the code: {code}")
    return "\n".join(lines)


def _password(given: str | None) -> str:
    """Return a password from the option, standard input (`-`), or a prompt, which needs a terminal."""
    if given is None and sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    if given is None:
        raise ClickException("--password: missing. Hand it over by standard input, with `--password -`.")
    if given == "-":
        return sys.stdin.readline().rstrip("\r\n")
    click.echo(
        "A password on the command line is seen by all who list processes; use `--password -` instead.", err=True
    )
    return given


@main.group()
def admin() -> None:
    """Manage the people with an account."""


@admin.command("create")
@click.option("--name", required=True)
@click.option("--email", required=True)
@click.option("--password", help="- reads it from standard input; without this option it is asked for.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def create_admin(name: str, email: str, password: str | None, as_json: bool) -> None:
    """Make an admin."""
    from chatapp.accounts import auth, keys
    from chatapp.store import EmailTaken

    password = _password(password)
    parts = _parts()
    try:
        name, email = auth.checked_person(name, email, password)
        person = parts.store.people.add_admin(name, email, auth.hash_password(password))
    except auth.Refused as error:
        raise ClickException(f"--{error.field}: {error.message}") from None
    except EmailTaken:
        raise ClickException(f"--email: {email} has an account already; see `chatapp admin reset-password`.") from None
    (parts.settings.data_dir / keys.CODE_FILE).unlink(missing_ok=True)
    report = {"id": person.uuid, "name": person.name, "email": person.email}
    print(json.dumps(report) if as_json else f"{person.name} <{person.email}> can sign in now.")


@admin.command("reset-password")
@click.option("--email", required=True)
@click.option("--password", help="- reads it from standard input; without this option it is asked for.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def reset_password(email: str, password: str | None, as_json: bool) -> None:
    """Set another password and end the person's sessions."""
    from chatapp.accounts import auth
    from chatapp.store import BY_SHELL

    password = _password(password)
    parts = _parts()
    person = _person(parts, email)
    try:
        auth.checked_person(person.name, email, password)
    except auth.Refused as error:
        raise ClickException(f"--{error.field}: {error.message}") from None
    parts.administration.set_password(BY_SHELL, person.uuid, auth.hash_password(password))
    print(json.dumps({"email": email}) if as_json else f"{email} can sign in with the new password.")


def _person(parts: Parts, email: str) -> ListedPerson:
    """Return the person with this address. Raises ClickException."""
    found = parts.store.directory.find_by_email(email)
    if found is None:
        raise ClickException(f"--email: nobody has the address {email}.")
    return found


@admin.command("invite")
@click.option("--email", required=True)
@click.option("--operator", is_flag=True, help="As an operator: also people, audit and drills.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def invite(email: str, operator: bool, as_json: bool) -> None:
    """Print a link that makes an account for this address, once, within 7 days."""
    from chatapp.accounts import administration, auth
    from chatapp.store import BY_SHELL

    parts = _served_parts()
    try:
        token = parts.administration.invite(BY_SHELL, email, operator)
    except auth.Refused as error:
        raise ClickException(f"--{error.field}: {error.message}") from None
    url = administration.link_url(parts.settings, token)
    if not parts.settings.public_url:
        click.echo("Set CHATAPP_PUBLIC_URL for a whole link; this is its path, after the address people use.", err=True)
    print(json.dumps({"email": email, "url": url}) if as_json else url)


@admin.command("role")
@click.option("--email", required=True)
@click.option("--role", type=click.Choice(["admin", "operator"]), required=True)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def set_role(email: str, role: str, as_json: bool) -> None:
    """Make a person an operator (also people, audit, drills), or only an admin (chats)."""
    from chatapp.store import BY_SHELL

    parts = _served_parts()
    parts.administration.set_role(BY_SHELL, _person(parts, email).uuid, role == "operator")
    print(json.dumps({"email": email, "role": role}) if as_json else f"{email} is {role} now.")


@admin.command("disable")
@click.option("--email", required=True)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def disable(email: str, as_json: bool) -> None:
    """Block a person's sign-in, and end their sessions and connections at once."""
    from chatapp.store import BY_SHELL

    parts = _served_parts()
    parts.administration.disable(BY_SHELL, _person(parts, email).uuid)
    print(json.dumps({"email": email}) if as_json else f"{email} is signed out everywhere and cannot sign in.")


@admin.command("enable")
@click.option("--email", required=True)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def enable(email: str, as_json: bool) -> None:
    """Let a disabled person sign in again."""
    from chatapp.store import BY_SHELL

    parts = _served_parts()
    parts.administration.enable(BY_SHELL, _person(parts, email).uuid)
    print(json.dumps({"email": email}) if as_json else f"{email} can sign in.")


@main.command("config")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def show_config(as_json: bool) -> None:
    """Show every setting with value, source and meaning."""
    rows = describe(load(os.environ), os.environ)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        unit = f" {row.unit}" if row.unit else ""
        print(f"{row.name} = {row.value or '(none)'}{unit if row.value else ''}  [{row.source}]\n    {row.meaning}")


@main.group("secrets")
def secrets_group() -> None:
    """The keys that sign cookies."""


@secrets_group.command("rotate")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def rotate(as_json: bool) -> None:
    """Have another key sign cookies from the next start on. Nobody is signed out, no draft or offline copy is lost."""
    from chatapp.accounts.keys import KEY_FILE, rotate_keys

    settings = load(os.environ)
    if not (settings.data_dir / KEY_FILE).exists():
        raise ClickException(NOTHING_SERVED.format(settings.data_dir))
    try:
        former = rotate_keys(settings.data_dir, settings.session_lifetime * 86400)
    except OSError as error:
        raise ClickException(f"DATA_DIR={settings.data_dir}: {error.strerror}. The key is as it was.") from None
    words = f"A new key signs from the next start on: restart the server. {former} former ones are accepted until their"
    print(json.dumps({"former": former}) if as_json else f"{words} cookies have ended.")


@main.group()
def drill() -> None:
    """Inject a fault into the running server for a limited time, and see how clients cope."""


@drill.command("start")
@click.argument("fault", type=click.Choice(DRILL_FAULTS))
@click.option("--seconds", default=60, type=click.IntRange(1, LONGEST_DRILL_S), help="How long (60; 900 at most).")
@click.option("--person", default="", help="Only for the person with this e-mail address; else for all.")
@click.option("--amount", default=None, type=click.FloatRange(0.1, 10), help="Seconds of delay (2) or pause (5).")
@click.option("--wait/--no-wait", default=True, help="Wait for the end and report (the default).")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def start_drill(fault: str, seconds: int, person: str, amount: float | None, wait: bool, as_json: bool) -> None:
    """Start a drill. refuse, close, mute, delay or 429: see docs/operations.md."""
    from chatapp.diagnostics.drills import AMOUNTS_S
    from chatapp.store import DrillRunning

    parts = _served_parts()
    known = parts.store.people.password_hash(person) if person else None
    if person and known is None:
        raise ClickException(f"--person: nobody has the address {person}.")
    try:
        started = parts.store.drills.start(
            fault, seconds, amount or AMOUNTS_S.get(fault, 0.0), known[0] if known else None
        )
    except DrillRunning:
        raise ClickException("A drill is running; `chatapp drill stop` ends it.") from None
    if not as_json:
        print(f"{fault} for {seconds} s, for {person or 'everybody'}. `chatapp drill stop` ends it.", flush=True)
    if wait:
        ends_at = time.monotonic() + seconds
        while parts.store.drills.running() and (left_s := ends_at - time.monotonic()) > 0:
            time.sleep(min(1.0, left_s))
        time.sleep(DRILL_SETTLE_S)
        _show_drill(parts, as_json)
    elif as_json:
        print(json.dumps({"id": started.uuid}))


@drill.command("stop")
def stop_drill() -> None:
    """End the running drill."""
    parts = _served_parts()
    print("The drill ends now." if parts.store.drills.end() else "No drill was running.")


@drill.command("report")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def report_drill(as_json: bool) -> None:
    """Report how clients coped with the newest drill."""
    _show_drill(_served_parts(), as_json)


def _show_drill(parts: Parts, as_json: bool) -> None:
    from chatapp.diagnostics.drills import SETTLE_MS, report

    newest = parts.store.drills.newest()
    if newest is None:
        raise ClickException("There was no drill yet.")
    until = newest.ends_at + SETTLE_MS
    results = report(newest, parts.store.events.between(newest.starts_at, until, newest.person))
    seconds = (newest.ends_at - newest.starts_at) / 1000
    is_running = newest.left_s() > 0
    if as_json:
        drill_fields = {"id": newest.uuid, "fault": newest.fault, "seconds": seconds, "running": is_running}
        print(json.dumps({**drill_fields, **results}, indent=2))
        return
    print(f"{newest.fault}, {seconds:g} s{', still running' if is_running else ''}:")
    for name, value in results.items():
        print(f"  {name.replace('_', ' ')}: {'-' if value is None else value}")


@main.command("diagnostics")
@click.option("--since", default="24h", help="How far back: such as 90m, 24h, 7d (24h).")
@click.option("--out", default="", help="The file; else chatapp-diagnostics-<time>.zip in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def make_bundle(since: str, out: str, as_json: bool) -> None:
    """Write a zip that helps to explain a fault: pseudonymised, without texts and secrets."""
    from chatapp.diagnostics.bundle import period_ms
    from chatapp.store import BY_SHELL

    try:
        back_ms = period_ms(since)
    except ValueError as error:
        raise ClickException(f"--since: {error}") from None
    path = Path(out or f"chatapp-diagnostics-{datetime.now(UTC):%Y-%m-%d-%H%M%S}.zip")
    parts = _served_parts()
    made = parts.bundler.make(back_ms)
    try:
        with open(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            shutil.copyfileobj(made, file)
    except OSError as error:
        raise ClickException(f"--out {path}: {error.strerror}.") from None
    parts.store.audit.add("diagnostics", BY_SHELL, detail=since)
    size = path.stat().st_size
    print(json.dumps({"file": str(path), "bytes": size}) if as_json else f"{path}: {size / 1000:.0f} kB")


@main.group("alerts")
def alerts_group() -> None:
    """The rules by which operators are told of incidents."""


@alerts_group.command("test")
@click.argument("rule", required=False)
@click.option("--send", is_flag=True, help="Instead: send a notice marked as a test on each channel.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def test_alerts(rule: str | None, send: bool, as_json: bool) -> None:
    """Replay the examples of each alert rule, or of one, in looks of 15 s. Exit code 1: one came out otherwise."""
    from chatapp.monitoring.replay import replay, vectors

    if send:
        sent = _served_parts().alerts.try_channels()
        words = [f"{name}: {error or 'sent'}" for name, error in sent.items()]
        print(json.dumps(sent) if as_json else "\n".join(words))
        sys.exit(1 if any(sent.values()) else 0)

    known = vectors()
    if rule is not None and rule not in known:
        raise ClickException(f"{rule} is no alert rule. The rules: {', '.join(known)}.")
    found = [(one, replay(one)) for name in known if rule in (None, name) for one in known[name]]
    wrong = [one for one, came in found if not came.is_as(one)]
    if as_json:
        rows = [{"rule": one.rule, "name": one.name, **asdict(came), "ok": came.is_as(one)} for one, came in found]
        print(json.dumps(rows, indent=2))
    for one, came in () if as_json else found:
        is_right = came.is_as(one)
        print(f"{'ok   ' if is_right else 'WRONG'} {one.rule}: {one.name}\n      {came.states}")
        print(f"      notices: {', '.join(came.notices) or 'none'}")
        if not is_right:
            print(f"      expected: {one.states}; notices: {', '.join(one.notices) or 'none'}")
    sys.exit(1 if wrong else 0)


@main.command("ask")
@click.argument("question", nargs=-1)
@click.option(
    "--check",
    "file",
    type=click.File(encoding="utf-8"),
    help="Ask all questions of a file; exit code 1: not all right.",
)
def run_ask(question: tuple[str, ...], file: IO[str] | None) -> None:
    """Show which passages of the knowledge folder the built-in assistant finds for a question.

    A line of the file: `question => document#section, other#section`, or `question => -` if none must be quoted.
    """
    from chatapp.assistant import checks, make_knowledge

    if bool(question) == bool(file):
        raise click.UsageError("Name a question, or --check FILE.")
    knowledge = make_knowledge(load(os.environ))
    if file is None:
        found = knowledge.find(" ".join(question))
        print("quoted:" if found.is_sure else "not sure; nearest:" if found.hits else "nothing found")
        for hit in found.hits:
            print(f"{hit.score:7.1f}  {hit.share:4.0%}  {checks.name(hit.passage)}")
        return
    try:
        outcomes = list(checks.run(knowledge, checks.parse(file.read())))
    except checks.UnreadableCheck as error:
        raise ClickException(f"{file.name}, {error}") from None
    for one in outcomes:
        if not one.is_right:
            names = ", ".join(checks.name(passage) for passage in one.found.passages) or "nothing"
            print(
                f"{one.check.question}\n    found: {names}\n    expected: {', '.join(one.check.expected) or 'no quote'}"
            )
    print(checks.summary(outcomes))
    sys.exit(0 if all(one.is_right for one in outcomes) else 1)


@main.command("doctor")
@click.argument("url")
@click.option(
    "--email", default="", help="Sign in with this address; asks for the password unless --password is given."
)
@click.option("--password", default="", help="- reads it from standard input.")
@click.option("--session", default="", help="Instead: the session cookie as name=value, as developer tools show it.")
@click.option("--proxy", default=None, help="Forward proxy as host:port; else what HTTP_PROXY and HTTPS_PROXY say.")
@click.option("--idle", "idle_s", default=20.0, type=click.FloatRange(1, 900), help="Seconds of silence (20).")
@click.option("--hold", "hold_s", default=None, type=click.FloatRange(1, 120), help="Seconds of the held poll (25).")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def run_doctor(
    url: str,
    email: str,
    password: str,
    session: str,
    proxy: str | None,
    idle_s: float,
    hold_s: float | None,
    as_json: bool,
) -> NoReturn:
    """Test the connection to a server. Exit code 0: good, 1: degraded, 2: unreachable."""
    from chatapp.diagnostics import advice, doctor, verdicts

    if email and not password:
        password = click.prompt("Password", hide_input=True)
    elif password:
        password = _password(password)

    def show(found: doctor.Found) -> None:
        ms = found.facts.get("ms")
        figure = f" ({ms} ms)" if found.outcome == "ok" and ms is not None else ""
        if not as_json and found.outcome != "skipped":
            print(f"{found.level:8}{advice.PROBE_WORDS[found.probe]} {found.words}{figure}", flush=True)

    try:
        report = doctor.Doctor(doctor.Way.to(url, proxy), show).examine(email, password, session, idle_s, hold_s)
    except doctor.Unreachable as error:
        raise click.UsageError(str(error)) from None
    print(json.dumps(report.as_dict(), indent=2) if as_json else "\n".join(["", *report.lines()]))
    sys.exit(verdicts.EXIT_CODES[report.verdict.worth])


if __name__ == "__main__":
    main()
