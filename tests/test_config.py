"""Settings: every name of the contract, wrong values that stop the start, and a URL prefix that reaches everything."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from lab.elements import parse
from lab.http import JSON, Answer, Client
from lab.processes import free_port
from lab.server import EMAIL, PASSWORD, Server, run_chatapp
from websockets.sync.client import connect

from chatapp.config import ConfigError, Settings, describe, is_within, load

CONTRACT = [
    "WORKERS",
    "TRANSPORTS",
    "WS_PING_INTERVAL",
    "WS_PONG_TIMEOUT",
    "WS_WRITE_TIMEOUT",
    "WS_READ_TIMEOUT",
    "WS_MAX_MESSAGE_SIZE",
    "POLL_INTERVAL",
    "POLL_MAX_RETRIES",
    "POLL_BACKOFF",
    "POLL_LONGEST_HOLD",
    "RECONNECT_INTERVAL",
    "MAX_RECONNECT_ATTEMPTS",
    "HEARTBEAT_INTERVAL",
    "RATE_LIMIT_SENDS",
    "RATE_LIMIT_CONNECTS",
    "MAX_SOCKETS_PER_USER",
    "MAX_SOCKETS_PER_ADDRESS",
    "ASSISTANT",
    "ASSISTANT_PACE",
    "DATABASE_URL",
    "REDIS_URL",
    "PUBLIC_URL",
    "ALLOWED_ORIGINS",
    "TRUSTED_PROXIES",
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_MODEL",
    "ADMIN_NAME",
    "ADMIN_EMAIL",
    "ADMIN_PASSWORD",
]

DEFAULTS = {
    "port": 8000,
    "transports": ("websocket", "polling"),
    "ws_ping_interval": 30,
    "ws_pong_timeout": 60,
    "ws_write_timeout": 10,
    "ws_read_timeout": 60,
    "ws_max_message_size": 512,
    "poll_interval": 3,
    "poll_max_retries": 3,
    "poll_backoff": 1.5,
    "poll_longest_hold": 25,
    "reconnect_interval": 5,
    "max_reconnect_attempts": 10,
    "heartbeat_interval": 30,
    "assistant": "builtin",
    "assistant_pace": 400,
    "longest_answer": 200_000,
    "events_kept": 14,
    "questions_kept": 90,
    "minutes_kept": 30,
    "hours_kept": 730,
    "events_most": 500,
    "openai_timeout": 60,
}


@pytest.mark.parametrize("name", CONTRACT)
def test_every_setting_of_the_contract_is_known(name: str) -> None:
    assert name.lower() in {field.name for field in fields(Settings)}


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_the_defaults_are_those_of_the_request(name: str, value: object) -> None:
    assert getattr(load({}), name) == value


WRONG = {
    "PORT": ["0", "65536", "http", "80.5", "-1"],
    "WS_PING_INTERVAL": ["0", "-1", "thirty", "nan", "inf", "30s"],
    "WS_PONG_TIMEOUT": ["0", "x"],
    "WS_WRITE_TIMEOUT": ["0", "x"],
    "WS_READ_TIMEOUT": ["0", "x"],
    "WS_MAX_MESSAGE_SIZE": ["0", "100", "512.5", "big"],
    "POLL_INTERVAL": ["0", "x"],
    "POLL_MAX_RETRIES": ["-1", "1.5"],
    "POLL_BACKOFF": ["0.5", "x"],
    "POLL_LONGEST_HOLD": ["-1", "x"],
    "RECONNECT_INTERVAL": ["0", "x"],
    "MAX_RECONNECT_ATTEMPTS": ["0", "x"],
    "HEARTBEAT_INTERVAL": ["0", "x"],
    "TRANSPORTS": ["carrier-pigeon", ",", "polling,polling", "websocket polling"],
    "ASSISTANT": ["clippy", "BUILTIN"],
    "ASSISTANT_PACE": ["0", "fast"],
    "OPENAI_BASE_URL": ["model.example.org/v1", "http://ada:secret@x/v1", "http://x/v1?key=secret"],
    "OPENAI_API_KEY": ["two words"],
    "OPENAI_TIMEOUT": ["0", "x"],
    "PUBLIC_URL": ["chat.example.org", "ftp://x", "https://"],
    "ALLOWED_ORIGINS": ["https://a.example.org, b.example.org", "*"],
    "TRUSTED_PROXIES": ["proxy.example.org", "10.0.0.0/40"],
    "URL_PREFIX": ["chat", "/a b", "//"],
    "SESSION_LIFETIME": ["0", "x"],
    "SESSION_IDLE": ["0", "x"],
    "ACCESS_LIFETIME": ["0", "1e9"],
    "RATE_LIMIT_SENDS": ["1000", "0/minute", "1000/day", "x/minute", "-1/second"],
    "MAX_SOCKETS_PER_USER": ["0", "x"],
    "METRICS_TOKEN": ["short", "sixteen characters and spaces", "é" * 20],
    "LOG_FORMAT": ["JSON", "xml"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_with_a_sentence_that_names_the_setting(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({f"CHATAPP_{name}": value})
    assert f"CHATAPP_{name}" in str(caught.value)
    assert str(caught.value).endswith(".")


NOT_BUILT = {
    "DATABASE_URL": "postgresql://secret@x/y",
    "REDIS_URL": "redis://x",
}


@pytest.mark.parametrize(("name", "value"), NOT_BUILT.items())
def test_a_setting_that_is_not_built_yet_stops_the_start_when_it_is_set(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="not built yet") as caught:
        load({f"CHATAPP_{name}": value})
    assert f"CHATAPP_{name}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_limit_is_a_number_in_a_period_or_off() -> None:
    found = load({"CHATAPP_RATE_LIMIT_SENDS": "90 / Minute", "CHATAPP_RATE_LIMIT_POLLS": "off"})
    assert (found.rate_limit_sends.per_s, str(found.rate_limit_sends), str(found.rate_limit_polls)) == (
        1.5,
        "90/minute",
        "off",
    )


def test_what_is_built_of_such_a_setting_may_be_set() -> None:
    assert load({"CHATAPP_WORKERS": "2"}).workers == 2


@pytest.mark.parametrize("name", ["CHATAPP_WS_PING", "CHATAPP_", "CHATAPP_ws_ping_interval_"])
def test_an_unknown_name_is_no_setting(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load({name: "1"})


def test_an_empty_value_is_as_if_it_was_not_set() -> None:
    assert load({"CHATAPP_WS_PING_INTERVAL": "", "PORT": ""}) == load({})


def test_port_host_and_data_dir_also_come_without_the_prefix(tmp_path: Path) -> None:
    plain = load({"PORT": "9001", "HOST": "0.0.0.0", "DATA_DIR": str(tmp_path)})
    assert (plain.port, plain.host, plain.data_dir) == (9001, "0.0.0.0", tmp_path)
    assert load({"PORT": "9001", "CHATAPP_PORT": "9002"}).port == 9002
    assert load({"WORKERS": "7", "TRANSPORTS": "x"}) == load({}), "other names belong to others"
    with pytest.raises(ConfigError, match="PORT"):
        load({"PORT": "http"})


@pytest.mark.parametrize("missing", ["NAME", "EMAIL", "PASSWORD"])
def test_the_three_settings_of_the_first_admin_go_together(missing: str) -> None:
    given = {f"CHATAPP_ADMIN_{name}": "x" for name in ("NAME", "EMAIL", "PASSWORD") if name != missing}
    with pytest.raises(ConfigError, match="CHATAPP_ADMIN_NAME"):
        load(given)


def test_values_are_read_in_their_own_type() -> None:
    settings = load(
        {
            "CHATAPP_TRANSPORTS": "polling, websocket",
            "CHATAPP_ALLOWED_ORIGINS": "https://a.example.org/ ,http://b:81",
            "CHATAPP_TRUSTED_PROXIES": "127.0.0.1, 10.1.2.3/8,::1",
            "CHATAPP_URL_PREFIX": "/chat/",
            "CHATAPP_POLL_LONGEST_HOLD": "0",
        }
    )
    assert settings.transports == ("websocket", "polling")
    assert settings.allowed_origins == ("https://a.example.org", "http://b:81")
    assert is_within(settings.trusted_proxies[1:2], "10.200.0.1")
    assert not is_within(settings.trusted_proxies[1:2], "11.0.0.1")
    assert settings.url_prefix == "/chat" and settings.poll_longest_hold == 0


def test_an_origin_with_a_path_would_never_match_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="CHATAPP_ALLOWED_ORIGINS"):
        load({"CHATAPP_ALLOWED_ORIGINS": "https://a.example.org/chat"})


def test_secrets_are_not_shown() -> None:
    environ = {"CHATAPP_ADMIN_NAME": "A", "CHATAPP_ADMIN_EMAIL": "a@b", "CHATAPP_ADMIN_PASSWORD": "hush hush hush"}
    rows = {row.name: row for row in describe(load(environ), environ)}
    assert rows["CHATAPP_ADMIN_PASSWORD"].value == "(set)"
    assert "hush" not in repr(rows)
    assert rows["CHATAPP_ADMIN_EMAIL"].source == "CHATAPP_ADMIN_EMAIL"


# The commands


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"ws_ping_interval": "often"}, "CHATAPP_WS_PING_INTERVAL"),
        ({"database_url": "postgresql://x/y"}, "CHATAPP_DATABASE_URL"),
        ({"colour": "blue"}, "CHATAPP_COLOUR"),
        ({"admin_password": "short"}, "CHATAPP_ADMIN_PASSWORD"),
    ],
)
def test_serve_stops_with_a_sentence_and_code_1(tmp_path: Path, settings: dict[str, str], names: str) -> None:
    result = run_chatapp(Server(tmp_path, **settings), "serve")
    assert result.returncode == 1
    assert names in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_serve_says_so_when_the_data_directory_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    result = run_chatapp(Server(tmp_path), "serve")
    assert (result.returncode, "DATA_DIR" in result.stderr, "Traceback" in result.stderr) == (1, True, False)


def config_command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`chatapp config` with some settings set."""
    server = Server(tmp_path, port=free_port(), ws_ping_interval="12.5")
    return run_chatapp(server, "config", *arguments)


def test_config_lists_every_setting_with_value_source_and_meaning(tmp_path: Path) -> None:
    result = config_command(tmp_path)
    assert result.returncode == 0
    assert "CHATAPP_WS_PING_INTERVAL = 12.5 s  [CHATAPP_WS_PING_INTERVAL]" in result.stdout
    assert "CHATAPP_WS_PONG_TIMEOUT = 60 s  [default]" in result.stdout
    assert "correct horse" not in result.stdout
    listed = {line.split(" = ")[0] for line in result.stdout.splitlines() if line.startswith("CHATAPP_")}
    assert listed == {f"CHATAPP_{field.name.upper()}" for field in fields(Settings)}


def test_config_as_json_is_for_programs(tmp_path: Path) -> None:
    result = config_command(tmp_path, "--json")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert {f"CHATAPP_{name}" for name in CONTRACT} <= set(rows)
    assert rows["CHATAPP_WS_PING_INTERVAL"]["value"] == "12.5"
    assert rows["CHATAPP_DATA_DIR"]["source"] == "DATA_DIR"
    assert rows["CHATAPP_ADMIN_PASSWORD"]["value"] == "(set)"
    assert all(row["meaning"].strip() for row in rows.values())


# The prefix


class PrefixedClient(Client):
    """Knows paths without the prefix, as the other tests do, and asks for them under it."""

    prefix = "/chat"

    def request(self, method: str, path: str, *arguments: object, **options: object) -> Answer:
        """One request; a Location has the prefix already."""
        path = path if path.startswith(self.prefix) else self.prefix + path
        return super().request(method, path, *arguments, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server under /chat."""
    with Server(tmp_path_factory.mktemp("prefixed"), url_prefix="/chat", assistant="off") as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left_running() -> None:
    """The server under a prefix outlives each test; it ends with the module."""


def test_under_a_prefix_signing_in_posting_and_polling_work(prefixed: Server) -> None:
    me = PrefixedClient(prefixed.url).sign_in()
    answer = me.create("hello")
    assert answer.status == 201
    conversation = answer.json["conversation"]
    assert me.post_message(conversation, "again").status == 201
    poll = me.poll({conversation: 0})
    assert [article.one(css_class="body").text.strip() for article in poll.page.all("article")] == ["hello", "again"]
    row = me.poll({"list": 0}).page.one("li")
    assert f"/chat/c/{conversation}" in [link.get("href") for link in row.all("a")]


def test_under_a_prefix_a_websocket_opens_and_takes_messages(prefixed: Server) -> None:
    me = PrefixedClient(prefixed.url).sign_in()
    conversation = me.create("hello").json["conversation"]
    address = prefixed.url.replace("http", "ws", 1) + "/chat/ws"
    headers = {"Cookie": me.cookie_header}
    with connect(address, origin=prefixed.url, additional_headers=headers, proxy=None) as socket:  # type: ignore[arg-type]
        assert str(socket.recv(5)).startswith("<chat-hello")
        client_id = str(uuid.uuid4())
        send = {"type": "send", "conversation": conversation, "client_id": client_id, "body": "over the socket"}
        socket.send(json.dumps(send))
        ack = parse(str(socket.recv(5))).one("chat-ack")
        assert ack.get("client-id") == client_id


def test_under_a_prefix_every_address_of_the_page_has_it(prefixed: Server) -> None:
    me = PrefixedClient(prefixed.url).sign_in()
    conversation = me.create("hello").json["conversation"]
    page = me.open(conversation)
    config = json.loads(page.one("meta", name="chat-config").get("content"))
    addresses = [config[name] for name in config if name.endswith("_url")]
    addresses += [e.get(a) for e in page.walk() for a in ("href", "src", "action", "hx-post", "hx-get") if e.get(a)]
    outside = [address for address in addresses if address.startswith("/") and not address.startswith("/chat/")]
    assert outside == []
    assert all("://" not in address for address in addresses)
    for address in {a for a in addresses if a.startswith("/chat/static/")}:
        assert me.request("GET", address).status == 200, address


def test_under_a_prefix_redirects_and_cookies_stay_inside(prefixed: Server) -> None:
    stranger = PrefixedClient(prefixed.url)
    answer = stranger.request("GET", "/connection")
    assert answer.headers["Location"] == "/chat/sign-in?next=/connection"
    form = stranger.get("/sign-in?next=/connection")
    assert "Path=/chat/" in form.headers["Set-Cookie"]
    stranger.learn(form.page)
    answer = stranger.post("/sign-in", email=EMAIL, password=PASSWORD, next="/connection")
    assert answer.headers["Location"] == "/chat/connection"


def test_outside_the_prefix_there_is_nothing_but_health(prefixed: Server) -> None:
    plain = Client(prefixed.url)
    statuses = {path: plain.request("GET", path).status for path in ("/", "/sign-in", "/ws", "/chatter", "/changes")}
    assert set(statuses.values()) == {404}
    assert plain.request("GET", "/healthz").status == 200
    assert plain.request("GET", "/chat/readyz", headers=JSON).status == 200
