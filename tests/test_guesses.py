"""Guessing passwords, changing keys, forms of other sites: what a stranger tries, and that the owner is never hurt."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from lab.http import JSON, Answer, Client
from lab.people import database
from lab.server import EMAIL, PASSWORD, Server, run_chatapp

from chatapp.accounts.guesses import FORGOTTEN_S, FREE, Guesses, TooSoon, tells_people_apart
from chatapp.accounts.keys import instance_name, rotate_keys, secret_keys
from chatapp.cli import main

StartServer = Callable[..., Server]


def attempt(client: Client, password: str, address: str, email: str = EMAIL) -> Answer:
    """A sign-in from an address, by a declared proxy."""
    headers = {"X-Forwarded-For": address}
    client.token = ""
    client.learn(client.request("GET", "/sign-in", headers=headers).page)
    return client.post("/sign-in", JSON | headers, email=email, password=password)


def until_refused(attacker: Client) -> Answer:
    """Guesses on until it is to wait; on a busy machine one guess may take as long as the first waits."""
    for number in range(12):
        answer = attempt(attacker, f"wrong {number}", "203.0.113.9")
        if answer.status == 429:
            return answer
    raise AssertionError("never refused")


def test_wrong_passwords_wait_longer_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted before they are looked at, so that many at once do not all pass; a right one forgets them."""
    now = [1000.0]
    monkeypatch.setattr("chatapp.accounts.guesses.time", SimpleNamespace(monotonic=lambda: now[0]))
    guesses, waits = Guesses(), []
    for _ in range(FREE):
        guesses.count("ada@example.org", "192.0.2.1")
    for _ in range(2000):
        with pytest.raises(TooSoon) as soon:
            guesses.count("ADA@example.org", "192.0.2.1")
        waits.append(round(soon.value.retry_s))
        now[0] += soon.value.retry_s
        guesses.count("ada@example.org", "192.0.2.1")
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 64, 64] and set(waits[8:]) == {64}
    guesses.count("ada@example.org", "192.0.2.2")
    guesses.count("bob@example.org", "192.0.2.1")
    now[0] += FORGOTTEN_S
    for _ in range(FREE):
        guesses.count("ada@example.org", "192.0.2.1")
    guesses.forget("ada@example.org", "192.0.2.1")
    guesses.count("ada@example.org", "192.0.2.1")


@pytest.mark.parametrize(
    ("environ", "trusts", "apart"),
    [
        ({"REMOTE_ADDR": "203.0.113.5"}, False, True),
        ({"REMOTE_ADDR": "192.168.0.5"}, False, True),
        ({"REMOTE_ADDR": "127.0.0.1"}, False, False),
        ({"REMOTE_ADDR": "::1"}, False, False),
        ({"REMOTE_ADDR": ""}, False, False),
        ({"REMOTE_ADDR": "10.0.0.2", "HTTP_X_FORWARDED_FOR": "1.2.3.4"}, False, False),
        ({"REMOTE_ADDR": "1.2.3.4", "HTTP_X_FORWARDED_FOR": "1.2.3.4"}, True, True),
        ({"REMOTE_ADDR": "1.2.3.4", "HTTP_VIA": "x"}, False, True),  # any stranger can say so
    ],
)
def test_only_an_address_that_is_one_persons_counts(environ: dict[str, object], trusts: bool, apart: bool) -> None:
    assert tells_people_apart(environ, trusts) is apart


def test_an_attack_on_an_account_hurts_neither_its_owner_nor_others(start_server: StartServer) -> None:
    """The attacker must wait; the owner comes in at once, from elsewhere and by a browser that is known."""
    server = start_server(assistant="off", trusted_proxies="127.0.0.1")
    attacker = Client(server.url)
    assert [attempt(attacker, f"wrong {number}", "203.0.113.9").status for number in range(FREE)] == [422] * FREE
    refused = until_refused(attacker)
    assert int(refused.headers["Retry-After"]) >= 1 and "Too many wrong passwords" in refused.text
    owner = Client(server.url)
    assert attempt(owner, PASSWORD, "198.51.100.7").status == 303
    with database(server) as connection:
        connection.execute("UPDATE sessions SET access_until = 1, idle_until = 1")
    server.restart()
    for _ in range(3):  # the wait grows to some seconds
        until_refused(attacker)
        time.sleep(1)
    until_refused(attacker)
    assert attempt(Client(server.url), PASSWORD, "203.0.113.9").status == 429, "even if it were right"
    known = owner.clone()
    assert attempt(known, PASSWORD, "203.0.113.9").status == 303, "the owner's browser, at the attacker's address"
    assert attempt(Client(server.url), "wrong", "203.0.113.9", "grace@example.org").status == 422, "others are not hurt"


def test_the_owner_signs_in_while_an_account_is_under_attack(start_server: StartServer) -> None:
    server = start_server(assistant="off", trusted_proxies="127.0.0.1")
    stop = threading.Event()

    def attack(number: int) -> None:
        client = Client(server.url, 20)
        while not stop.is_set():
            try:
                attempt(client, "wrong", f"203.0.113.{number}")
            except (OSError, AssertionError, LookupError):  # it is refused before there is a form
                time.sleep(0.05)

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(2)
        began = time.monotonic()
        assert attempt(Client(server.url, 20), PASSWORD, "198.51.100.7").status == 303
        took = time.monotonic() - began
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    print(f"{took:.2f} s")
    assert took < 10  # below 5 s where nothing else runs


# Keys


def test_another_key_signs_nobody_out(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    client = Client(server.url).sign_in()
    page = client.get("/").page
    name, instance = next(iter(client.cookies)), page.one("body").get("data-instance")
    first = secret_keys(server.data)
    for number in range(1, 3):
        done = run_chatapp(server, "secrets", "rotate", "--json")
        assert done.returncode == 0 and f'"former": {number}' in done.stdout, done.stderr
    server.restart()
    assert secret_keys(server.data)[-1] == first[0] and len(set(secret_keys(server.data))) == 3
    again = client.get("/")
    assert again.status == 200 and again.page.one("body").get("data-instance") == instance
    client.learn(again.page)
    assert client.post("/c", JSON, body="hello").status == 201
    fresh = Client(server.url).sign_in()
    assert next(iter(fresh.cookies)) == name and fresh.cookies[name] != client.cookies[name]
    assert (server.data / "secret-key").stat().st_mode & 0o777 == 0o600


def test_a_former_key_ends_with_the_cookies_that_it_signed(tmp_path: Path) -> None:
    name = instance_name(tmp_path)
    rotate_keys(tmp_path, 3600)
    assert len(secret_keys(tmp_path)) == 2
    rotate_keys(tmp_path, 0)
    assert len(secret_keys(tmp_path)) == 2, "that of just now"
    assert len(secret_keys(tmp_path, 0)) == 1, "nor does it verify longer, without another change"
    path = tmp_path / "secret-key"
    path.write_text(f"{path.read_text()}\n\nput-there-by-hand\n")
    assert secret_keys(tmp_path, 0)[1:] == ["put-there-by-hand"]
    rotate_keys(tmp_path, 3600)
    assert secret_keys(tmp_path, 3600)[-1] == "put-there-by-hand"
    assert instance_name(tmp_path) == name


def test_a_key_that_cannot_be_changed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, and a folder of no server: it is said, and nothing is left behind."""
    keys, files = secret_keys(tmp_path), {"secret-key", "instance"}
    assert instance_name(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    for folder, words in ((tmp_path, "No space left"), (tmp_path / "none", "no server has run")):
        monkeypatch.setenv("DATA_DIR", str(folder))
        answer = CliRunner().invoke(main, ["secrets", "rotate"])
        assert answer.exit_code == 1 and words in answer.output, answer.output
    assert secret_keys(tmp_path) == keys and {path.name for path in tmp_path.iterdir()} == files


def full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Other sites


@pytest.mark.parametrize(
    "path", ["/c", "/sign-in", "/sign-out", "/session/renew", "/account/sessions/end", "/people/invite"]
)
def test_a_form_of_another_site_is_refused_whatever_it_knows(server: Server, client: Client, path: str) -> None:
    answer = client.post(path, JSON | {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, email="a@b.c")
    assert answer.status == 403 and answer.json["error"]["code"] == "origin"
    for site in ("same-origin", "same-site", "none"):
        assert client.clone().post("/c", JSON | {"Sec-Fetch-Site": site}).status == 201


def test_behind_https_the_cookies_name_keeps_neighbours_out(start_server: StartServer) -> None:
    for prefix, expected in (("", "__Host-chatapp_"), ("/chat", "__Secure-chatapp_")):
        server = start_server(assistant="off", public_url="https://chat.example.org", url_prefix=prefix)
        answer = Client(server.url).request("GET", f"{prefix}/sign-in")
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith(expected) and "; Secure" in cookie and f"; Path={prefix}/" in cookie
        assert "Domain" not in cookie
