"""First run, signing in and out, and the headers around them: proof against races, strangers and other sites."""

import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from html import unescape

import pytest
from lab.http import JSON, Answer, Client
from lab.peer import PollingPeer, WebSocketPeer
from lab.processes import wait_for
from lab.server import EMAIL, PASSWORD, Server, run_chatapp
from websockets.exceptions import ConnectionClosed, InvalidStatus

StartServer = Callable[..., Server]
FIRST = {"name": "Grace", "email": "grace@example.org", "password": "a long enough one"}


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The shared server outlives each test; it ends with the module."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with an admin; its pings are quick, so that a sign-out is noticed soon."""
    with Server(tmp_path_factory.mktemp("auth"), assistant="off", ws_ping_interval=0.4) as server:
        yield server


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without anybody; no test of this module sets it up."""
    with Server(tmp_path_factory.mktemp("empty"), seeded=False, assistant="off") as server:
        yield server


def first_run(client: Client, headers: dict[str, str] | None = None, **fields: str) -> Answer:
    """Ask for the form and send it."""
    client.learn(client.request("GET", "/first-run", headers=headers).page)
    return client.post("/first-run", headers, **(FIRST | fields))


def code_of(server: Server) -> str:
    """The code that the start printed."""
    found = re.search(r"/first-run#code=([0-9A-F]{12}) ", server.log_text())
    assert found, server.log_text()
    return found.group(1)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# First run


def test_of_two_first_runs_at_once_one_wins_and_the_other_is_told_plainly(start_server: StartServer) -> None:
    server = start_server(seeded=False, assistant="off")
    assert Client(server.url).get("/").page.one("input", name="email"), "an empty installation shows the form"
    clients = [Client(server.url) for _ in range(4)]
    for client in clients:
        client.learn(client.get("/first-run").page)
    answers: list[Answer] = []
    code = code_of(server)

    def submit(number: int) -> None:
        fields = {"name": f"N{number}", "email": f"n{number}@example.org", "password": PASSWORD, "code": code}
        answers.append(clients[number].post("/first-run", **fields))

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answer.status for answer in answers) == [303, 409, 409, 409]
    for answer in answers:
        assert "Traceback" not in answer.text
        if answer.status == 409:
            assert "Somebody has already set this up" in answer.text
    signed_in = [client for client in clients if client.get("/").page.all("form", id="composer")]
    assert len(signed_in) == 1, "who won is signed in at once, the others are not"
    late = Client(server.url)
    assert "/first-run" not in late.get("/first-run").text.partition("<main")[2]
    late.learn(late.get("/sign-in").page)
    assert late.post("/first-run", **FIRST).status == 409
    assert not (server.data / "first-run-code").exists()


CLOSE = {
    "nothing that says so": {},
    "a forged origin": {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"},
    "the name of the machine": {"Host": "localhost", "Origin": "http://localhost"},
    "a proxy's words": {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"},
}


@pytest.mark.parametrize("headers", CLOSE.values(), ids=CLOSE.keys())
def test_the_code_is_needed_however_near_one_seems(empty: Server, headers: dict[str, str]) -> None:
    """Behind nginx with nothing but proxy_pass, or a TCP forwarder, a stranger's request is just as near."""
    client = Client(empty.url)
    for code in ("", "None"):
        assert wants_code(first_run(client, headers, code=code)), f"{headers} lets a stranger in"
    assert client.request("GET", "/first-run", headers=headers).page.one("input", name="code")


def wants_code(answer: Answer) -> bool:
    """Whether a first run was refused for its code. With a password that is too short, none ever succeeds."""
    assert answer.status == 422
    codes = answer.page.all("input", name="code")
    return bool(codes) and codes[0].get("aria-invalid") == "true"


def test_the_code_works_once_from_anywhere(start_server: StartServer) -> None:
    address = own_address()
    server = start_server(seeded=False, assistant="off", host="0.0.0.0")
    client = Client(f"http://{address}:{server.port}")
    assert first_run(client).status == 422
    assert first_run(client, code=code_of(server).lower()).status == 303, "the code lets a stranger in"
    assert client.get("/").page.one("form", id="composer")
    again = Client(f"http://{address}:{server.port}")
    again.learn(again.get("/sign-in").page)
    assert again.post("/first-run", **FIRST, code=code_of(server)).status == 409, "the code works once"
    assert not (server.data / "first-run-code").exists()


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


def test_the_code_is_printed_and_stored_for_the_owner_only(empty: Server) -> None:
    file = empty.data / "first-run-code"
    assert file.read_text().strip() == code_of(empty)
    assert mode(file) == 0o600


def test_guessing_the_code_is_bounded(start_server: StartServer) -> None:
    server = start_server(seeded=False, assistant="off")
    client = Client(server.url)
    client.learn(client.get("/first-run").page)
    answers = [client.post("/first-run", **FIRST, code=f"{number:012X}") for number in range(14)]
    assert [answer.status for answer in answers[:10]] == [422] * 10
    assert answers[-1].status == 429
    assert "Too many wrong codes" in answers[-1].text and int(answers[-1].headers["Retry-After"]) > 0
    assert client.post("/first-run", **FIRST, code=code_of(server)).status == 429, "what is not looked at tells nothing"


BAD = [
    {"name": " "},
    {"name": "Assi\u200bstant"},
    {"email": "nobody"},
    {"email": "a@b@c"},
    {"password": "x" * 9},
    {"password": "Password123"},
]


@pytest.mark.parametrize("change", BAD)
def test_a_first_run_with_bad_input_says_what_is_wrong_and_keeps_the_rest(empty: Server, change: dict) -> None:
    answer = first_run(Client(empty.url), code=code_of(empty), **change)
    assert answer.status == 422
    (field,) = change
    assert answer.page.one("input", name=field).get("aria-invalid") == "true"
    kept = {"name", "email"} - {field}
    assert all(answer.page.one("input", name=name).get("value") == FIRST[name] for name in kept)
    assert not answer.page.one("input", name="password").has("value")


def test_nothing_else_is_open_before_the_first_run(empty: Server) -> None:
    stranger = Client(empty.url)
    assert stranger.request("GET", "/").headers["Location"] == "/first-run"
    assert stranger.request("GET", "/sign-in").headers["Location"] == "/first-run"
    assert stranger.request("GET", "/changes?c=list:0").status == 401


def test_an_empty_code_file_is_no_open_door(start_server: StartServer, tmp_path) -> None:
    """A start that was killed between making the file and writing it must not leave a code that is empty."""
    data = tmp_path / "server1" / "data"
    data.mkdir(parents=True)
    (data / "first-run-code").touch(mode=0o600)
    server = start_server(seeded=False, assistant="off")
    assert wants_code(first_run(Client(server.url), code=""))


def test_an_empty_key_file_is_no_key(start_server: StartServer, tmp_path) -> None:
    data = tmp_path / "server1" / "data"
    data.mkdir(parents=True)
    (data / "secret-key").touch(mode=0o600)
    server = start_server(assistant="off")
    assert len((server.data / "secret-key").read_text().strip()) >= 32
    assert Client(server.url).get("/sign-in").status == 200


# CSRF


FORMS = [
    "/sign-out",
    "/c",
    "/connection/events",
    "/sign-in",
    "/first-run",
    f"/c/{'0' * 8}-0000-4000-8000-{'0' * 12}/delete",
]


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("kind", ["missing", "foreign", "nonsense"])
def test_a_form_without_the_pages_own_token_is_refused(shared: Server, path: str, kind: str) -> None:
    me, other = Client(shared.url).sign_in(), Client(shared.url).sign_in()
    token = {"missing": "", "foreign": other.token, "nonsense": "x.y.z"}[kind]
    answer = me.post(path, csrf_token=token, body="hello", email=EMAIL, password=PASSWORD)
    assert answer.status == 400
    assert me.post(path, JSON, csrf_token=token).json["error"]["code"] == "csrf"
    assert me.get("/").page.one("form", id="composer"), "still signed in"


def test_the_token_may_come_as_a_header(shared: Server) -> None:
    me = Client(shared.url).sign_in()
    headers = {
        "X-CSRFToken": me.token,
        "Content-Type": "application/x-www-form-urlencoded",
        "Accept": "application/json",
    }
    answer = me.request("POST", "/c", "body=hello", headers)
    assert answer.status == 201


def test_a_token_of_before_the_sign_in_is_worth_nothing_after_it(shared: Server) -> None:
    me = Client(shared.url)
    me.learn(me.get("/sign-in").page)
    before = me.token
    me.sign_in()
    assert me.post("/c", JSON, csrf_token=before, body="hello").status == 400


# Signing in and out


def test_a_wrong_password_and_an_unknown_address_sound_the_same(shared: Server) -> None:
    texts = []
    for email, password in ((EMAIL, "wrong wrong wrong"), ("nobody@example.org", PASSWORD), ("", "")):
        client = Client(shared.url)
        client.learn(client.get("/sign-in").page)
        answer = client.post("/sign-in", email=email, password=password)
        assert answer.status == 422
        texts.append(re.findall(r'class="error"[^>]*>([^<]+)<', answer.text))
    assert texts[0] == texts[1] == texts[2] == ["The e-mail address or the password is wrong."]


def test_an_address_is_the_same_in_any_case(shared: Server) -> None:
    assert Client(shared.url).sign_in(f" {EMAIL.upper()} ")


def test_the_session_cookie_is_for_the_server_only(shared: Server) -> None:
    me = Client(shared.url)
    me.learn(me.get("/sign-in").page)
    before = dict(me.cookies)
    answer = me.post("/sign-in", email=EMAIL, password=PASSWORD)
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("chatapp_")
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Path=/" in cookie
    assert "Domain" not in cookie
    assert me.cookies != before


def test_behind_https_the_cookie_is_secure(start_server: StartServer) -> None:
    server = start_server(assistant="off", public_url="https://chat.example.org")
    assert "Secure" in Client(server.url).get("/sign-in").headers["Set-Cookie"]


def test_signing_out_ends_polls_at_once_and_the_socket_by_its_next_ping(shared: Server) -> None:
    me = Client(shared.url).sign_in()
    copy = me.clone()
    assert copy.poll({"list": 0}).status == 200
    with WebSocketPeer(me) as peer:
        peer.echo()
        assert me.post("/sign-out").status == 303
        assert copy.poll({"list": 0}).status == 401, "the stolen cookie is worth nothing"
        assert copy.poll({"list": 0}, epoch="x").json["error"]["code"] == "signed-out"
        assert copy.post("/c", JSON, body="hello").status in (400, 401)
        assert peer.wait_closed(2) == (4401, "signed out")
    with pytest.raises(InvalidStatus) as refused:
        WebSocketPeer(copy)
    assert refused.value.response.status_code == 401


def test_after_signing_out_a_held_poll_brings_nothing_more(shared: Server) -> None:
    me, other = Client(shared.url).sign_in(), Client(shared.url).sign_in()
    conversation = me.create("hello").json["conversation"]
    peer = PollingPeer(me.clone())
    peer.subscribe({conversation: 0})
    peer.poll()
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(peer.poll(8)))
    thread.start()
    time.sleep(0.4)
    me.post("/sign-out")
    other.post_message(conversation, "a secret")
    thread.join(10)
    assert "a secret" not in answers[0].text
    assert answers[0].status in (204, 401)


def test_one_session_ends_and_the_others_stay(shared: Server) -> None:
    phone, laptop = Client(shared.url).sign_in(), Client(shared.url).sign_in()
    phone.post("/sign-out")
    assert laptop.poll({"list": 0}).status == 200


@pytest.mark.parametrize("tampered", ["", "x", "eyJ0b2tlbiI6IngifQ.ZZZZ.zzzz"])
def test_a_cookie_that_we_did_not_sign_is_nobodys(shared: Server, tampered: str) -> None:
    me = Client(shared.url).sign_in()
    me.cookies = dict.fromkeys(me.cookies, tampered)
    assert me.request("GET", "/").headers["Location"].startswith("/sign-in")
    assert me.poll({"list": 0}).status == 401


ELSEWHERE = [
    "https://evil.example/",
    "//evil.example/",
    "///evil.example/",
    "/\\evil.example/",
    "\\\\evil.example/",
    "/\t/evil.example/",
    "/\n/evil.example/",
    "\t//evil.example/",
    " //evil.example/",
    "javascript:alert(1)",
    "http:evil.example",
    "evil.example",
    "//[",
    "//[evil",
    "/\r\nSet-Cookie: a=b",
    "/\x00//evil.example",
]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_signing_in_never_leads_to_another_site(shared: Server, target: str) -> None:
    me = Client(shared.url)
    me.learn(me.get("/sign-in").page)
    answer = me.post("/sign-in", email=EMAIL, password=PASSWORD, next=target)
    assert answer.status == 303
    location = answer.headers["Location"]
    assert re.fullmatch(r"/(?![/\\])[^\s\\]*", location), location
    assert "a=b" not in (answer.headers["Set-Cookie"] or "")


def test_signing_in_leads_where_the_person_wanted_to_go(shared: Server) -> None:
    me = Client(shared.url)
    location = me.request("GET", "/connection?a=1&b=2").headers["Location"]
    form = me.learn(me.get(location).page)
    target = unescape(form.one("input", name="next").get("value"))
    answer = me.post("/sign-in", email=EMAIL, password=PASSWORD, next=target)
    assert answer.headers["Location"] == "/connection?a=1&b=2"


# Headers, health, files


@pytest.mark.parametrize("path", ["/", "/sign-in", "/connection", "/changes?c=list:0", "/nowhere", "/c/x", "/healthz"])
def test_every_answer_has_the_headers(shared: Server, path: str) -> None:
    for client in (Client(shared.url), Client(shared.url).sign_in()):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and policy["base-uri"] == "'none'"
        assert policy["connect-src"] == f"'self' ws://127.0.0.1:{shared.port}"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store, no-transform"
        assert headers["Referrer-Policy"] == "same-origin"


def test_a_host_header_cannot_write_into_the_policy(shared: Server) -> None:
    evil = "x; script-src *"
    answer = Client(shared.url).request("GET", "/sign-in", headers={"Host": evil})
    assert "script-src *" not in (answer.headers["Content-Security-Policy"] or "")


def test_health_needs_no_session(shared: Server) -> None:
    stranger = Client(shared.url)
    assert (stranger.request("GET", "/healthz").status, stranger.request("GET", "/healthz").text) == (200, "ok\n")
    assert stranger.request("GET", "/readyz").json == {"ready": True}
    assert not stranger.cookies


def test_secrets_and_databases_are_for_the_owner_only(shared: Server) -> None:
    files = [path for path in shared.data.iterdir() if path.is_file()]
    assert {"chat.db", "metrics.db", "secret-key"} <= {path.name for path in files}
    assert {path.name: oct(mode(path)) for path in files if mode(path) & 0o077} == {}


def test_a_data_directory_that_the_start_makes_is_for_the_owner_only(tmp_path) -> None:
    server = Server(tmp_path / "new", data_dir=tmp_path / "new" / "made")
    run_chatapp(server, "admin", "create", "--name", "N", "--email", "n@example.org", "--password", PASSWORD)
    assert mode(tmp_path / "new" / "made") == 0o700


# Commands


def test_the_admin_from_the_environment_is_made_once(start_server: StartServer) -> None:
    server = start_server(assistant="off", from_scratch=True)
    assert "/first-run" not in server.log_text()
    Client(server.url).sign_in()
    server.settings["CHATAPP_ADMIN_PASSWORD"] = "another one entirely"
    server.restart()
    Client(server.url).sign_in(), "the second start changes nothing"


def test_admin_create_makes_one_who_can_sign_in_at_once(start_server: StartServer) -> None:
    server = start_server(seeded=False, assistant="off")
    person = ["--name", "Grace Hopper", "--email", "Grace@Example.org", "--password", PASSWORD]
    made = run_chatapp(server, "admin", "create", *person, "--json")
    assert made.returncode == 0, made.stderr
    assert '"email": "grace@example.org"' in made.stdout.lower()
    assert PASSWORD not in made.stdout
    Client(server.url).sign_in("grace@example.org")
    assert not (server.data / "first-run-code").exists()
    again = run_chatapp(server, "admin", "create", *person)
    assert (again.returncode, "account already" in again.stderr) == (1, True)
    short = run_chatapp(server, "admin", "create", *person[:-1], "short")
    assert (short.returncode, "--password" in short.stderr) == (1, True)


def test_reset_password_ends_the_sessions(start_server: StartServer) -> None:
    server = start_server(assistant="off")
    unseen = Client(server.url)
    unseen.learn(unseen.get("/sign-in").page)
    unseen.post("/sign-in", email=EMAIL, password=PASSWORD)
    done = run_chatapp(server, "admin", "reset-password", "--email", EMAIL, "--password", "an entirely new one")
    assert done.returncode == 0, done.stderr
    assert unseen.poll({"list": 0}).status == 401
    with pytest.raises(AssertionError, match="422"):
        Client(server.url).sign_in()
    Client(server.url).sign_in(password="an entirely new one")
    unknown = run_chatapp(server, "admin", "reset-password", "--email", "x@y", "--password", "an entirely new one")
    assert (unknown.returncode, "x@y" in unknown.stderr) == (1, True)


@pytest.mark.slow
def test_reset_password_ends_also_the_sessions_that_the_server_keeps_in_mind(start_server: StartServer) -> None:
    server = start_server(assistant="off", ws_ping_interval=1)
    me = Client(server.url).sign_in()
    with WebSocketPeer(me) as peer:
        run_chatapp(server, "admin", "reset-password", "--email", EMAIL, "--password", "an entirely new one")
        wait_for(lambda: me.poll({"list": 0}).status == 401, 33, "the session ends within 30 s", every=0.5)
        try:
            assert peer.wait_closed(3)[0] == 4401
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 4401
