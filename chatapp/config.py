"""The settings: name, type, unit, default and meaning. Read once; a wrong value stops the start.

They come from the environment as `CHATAPP_<NAME>`; PORT, HOST and DATA_DIR also without the prefix.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from dataclasses import field as dataclass_field
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PREFIX = "CHATAPP_"
UNPREFIXED = ("PORT", "HOST", "DATA_DIR")
TRANSPORTS = ("websocket", "polling")
DRILL_FAULTS = ("refuse", "close", "mute", "delay", "429")
LONGEST_DRILL_S = 900
PERIODS_S = {"second": 1, "minute": 60, "hour": 3600}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TRIGGERS = (
    "echo",
    "send",
    "buffered",
    "slow",
    "idle-kill",
    "network",
)  # see static/js/connection/detector.js
ASSISTANTS = ("builtin", "openai", "off")
SYSTEM_PROMPT = "You are the assistant of this chat. Answer in Markdown, to the point. Say so where you do not know."

PACKAGE = Path(__file__).parent


class ConfigError(Exception):
    """Raised for a wrong setting. The message names it and the remedy."""


def asset_dir(name: str) -> Path:
    """Return the folder of templates, static files or migrations: in the installed package, or beside it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def plain_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an address; an IPv4-mapped one (::ffff:127.0.0.1) becomes IPv4. Raises ValueError."""
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def is_within(networks: Iterable[Network], address: str) -> bool:
    """Return True if one of the networks contains an address, as it is written or as IPv4."""
    try:
        forms = ipaddress.ip_address(address), plain_address(address)
    except ValueError:  # a unix socket has none
        return False
    return any(form in network for network in networks for form in forms)


@dataclass(frozen=True)
class RateLimit:
    """So many in a period, and as many at once; 0: no limit."""

    number: int
    period: str  # second, minute, hour

    @property
    def per_s(self) -> float:
        """The rate, in 1/s."""
        return self.number / PERIODS_S[self.period]

    def among(self, workers: int) -> "RateLimit":
        """Return the share of each of several workers."""
        return RateLimit(ceil(self.number / workers), self.period)

    def __str__(self) -> str:
        return f"{self.number}/{self.period}" if self.number else "off"


NO_LIMIT = RateLimit(0, "second")


def _rate_limit(text: str) -> RateLimit:
    found = re.fullmatch(r"([1-9]\d{0,8}) ?/ ?(second|minute|hour)", text.strip().lower())
    if not found:
        raise ValueError("must be such as `1000/minute` (or /second, /hour), or off")
    return RateLimit(int(found[1]), found[2])


@dataclass(frozen=True)
class DrillSlot:
    """A weekly or daily time, in the server's time zone, of a drill."""

    day: str  # mon … sun, or daily
    hour: int
    minute: int
    fault: str
    seconds: int

    def is_at(self, now: datetime) -> bool:
        """Return True in the slot's minute."""
        return self.day in ("daily", DAYS[now.weekday()]) and (now.hour, now.minute) == (self.hour, self.minute)

    def __str__(self) -> str:
        return f"{self.day} {self.hour:02}:{self.minute:02} {self.fault} {self.seconds}"


def _items(text: str) -> list[str]:
    """Split at commas, without empty parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _drill_slots(text: str) -> tuple[DrillSlot, ...]:
    return tuple(map(_drill_slot, _items(text)))


def _drill_slot(text: str) -> DrillSlot:
    found = re.fullmatch(r"(\w+) ([01]?\d|2[0-3]):([0-5]\d) (\w+) (\d+)", text.lower())
    if not found or found[1] not in (*DAYS, "daily") or found[4] not in DRILL_FAULTS:
        raise ValueError("must be such as `sun 04:00 refuse 60`: day or daily, time, fault, seconds; commas between")
    if not 1 <= int(found[5]) <= LONGEST_DRILL_S:
        raise ValueError(f"a drill takes from 1 to {LONGEST_DRILL_S} seconds")
    return DrillSlot(found[1], int(found[2]), int(found[3]), found[4], int(found[5]))


def _number(low: float, high: float, whole: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> float | int:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            raise ValueError(f"must be a {'whole ' if whole else ''}number") from None
        if not low <= value <= high:
            raise ValueError(f"must be from {low:g} to {high:g}")
        return value

    return parse


def _or_off(parse: Callable[[str], Any], off: Any = 0) -> Callable[[str], Any]:
    """Parse `off` as another value."""
    return lambda text: off if text.strip() == "off" else parse(text)


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return text == "yes"


def _some_of(allowed: tuple[str, ...], message: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = _items(text)
        known = tuple(name for name in allowed if name in names)
        if not known or len(known) != len(names):
            raise ValueError(message)
        return known

    return parse


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


def _origin(text: str) -> str:
    text = text.strip()
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("must be a full address such as https://chat.example.org")
    return text.rstrip("/")


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(map(_origin, _items(text)))
    if any(urlsplit(origin).path for origin in origins):
        raise ValueError("must be origins without a path, such as https://chat.example.org")
    return origins


def _target(text: str) -> str:
    """Parse the address of something that is called: it may have a path and a query, but no user."""
    parts = urlsplit(text.strip())
    is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # a bad port raises
    if not is_address or parts.username or re.search(r"\s", text.strip()):
        raise ValueError("must be a full address such as https://hooks.example.org/alerts, without a user")
    return text.strip()


def _smtp_url(text: str) -> str:
    parts = urlsplit(text.strip())
    is_address = parts.scheme in ("smtp", "smtps") and parts.hostname and parts.port != 0  # a bad port raises
    if not is_address or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must be such as smtp://user:password@mail.example.org:587, or smtps://…")
    if bool(parts.username) != bool(parts.password):
        raise ValueError("must have a user and a password, or neither")
    if not unquote(text).isascii():
        raise ValueError("must have a user and a password of ASCII letters: mail servers take no others")
    return text.strip()


def _names(text: str) -> tuple[str, ...]:
    return tuple(_items(text))


def _emails(text: str) -> tuple[str, ...]:
    found = tuple(_items(text))
    if not all(re.fullmatch(r"[^@\s<>\",;]+@[^@\s<>\",;]+", one) and one.isascii() for one in found):
        raise ValueError("must be e-mail addresses with commas between them")
    return found


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part, strict=False) for part in _items(text))
    except ValueError as error:
        raise ValueError(f"must be addresses or networks with commas between them ({error})") from None


def _prefix(text: str) -> str:
    if text and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", text):
        raise ValueError("must be a path such as /chat")
    return text.rstrip("/")


def _token(text: str) -> str:
    if not re.fullmatch(r"[!-~]{16,200}", text.strip()):
        raise ValueError("must be 16 to 200 characters without spaces, such as `openssl rand -hex 24` prints")
    return text.strip()


def _path(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _setting(sentence: str, default: Any, parse: Callable[[str], Any], unit: str = "", **extra: Any) -> Any:
    metadata = {"sentence": sentence, "parse": parse, "unit": unit, **extra}
    return dataclass_field(default=default, metadata=metadata)


def _seconds(sentence: str, default: float, least: float = 0.1, most: float = 3600) -> Any:
    return _setting(sentence, default, _number(least, most), "s")


def _limit(sentence: str, default: RateLimit) -> Any:
    return _setting(f"{sentence} `off`: any number.", default, _or_off(_rate_limit, NO_LIMIT))


def _later(sentence: str, feature: str) -> Any:
    """Declare a setting of a feature that is not built yet; setting it stops the start."""
    return _setting(sentence, None, str, later=feature)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings, validated. Times are seconds, sizes bytes, unless the unit says otherwise."""

    host: str = _setting("Address to listen on.", "127.0.0.1", str)
    port: int = _setting("Port to listen on.", 8000, _number(1, 65535, whole=True))
    data_dir: Path = _setting("Folder of the databases and secrets.", Path("data").resolve(), _path)
    url_prefix: str = _setting("Path under which everything is served, such as /chat.", "", _prefix)
    public_url: str = _setting("Address people use, where a proxy hides it.", "", _origin)
    allowed_origins: tuple[str, ...] = _setting("Further origins that may open /ws.", (), _origins)
    trusted_proxies: tuple[Network, ...] = _setting("Proxies whose X-Forwarded headers count.", (), _networks)

    static_joined: bool = _setting(
        "Scripts and styles joined into one file each; `no` serves them apart, to debug.", True, _yes_or_no
    )

    workers: int = _setting("Worker processes.", 1, _number(1, 64, whole=True))
    transports: tuple[str, ...] = _setting(
        "Which transports to offer; `polling` alone is the polling-only mode.",
        TRANSPORTS,
        _some_of(TRANSPORTS, "must be websocket, polling, or websocket,polling"),
    )
    ws_ping_interval: float = _seconds("How often the server pings a WebSocket.", 30.0)
    ws_pong_timeout: float = _seconds("A ping unanswered for so long closes it.", 60.0)
    ws_write_timeout: float = _seconds("A write that a reader does not take in so long closes it.", 10.0)
    ws_read_timeout: float = _seconds("A WebSocket from which nothing came for so long is closed.", 60.0)
    ws_max_message_size: int = _setting(
        "Largest inbound WebSocket message; longer sends go by POST.",
        512,
        _number(256, 1 << 20, whole=True),
        "bytes",
    )
    request_timeout: float = _seconds(
        "A request's head, the beginning of its body, and the taking of an answer have so long.", 10.0
    )
    max_sockets_per_address: int = _setting(
        "Connections without a session that an address may have in a worker; `off`: as many as there is room for.",
        1000,
        _or_off(_number(1, 1e6, whole=True)),
    )

    max_sockets_per_user: int = _setting(
        "WebSockets that a person may have in a worker; further pages poll. `off`: as many as there is room for.",
        200,
        _or_off(_number(1, 1e6, whole=True)),
    )
    rate_limit_sends: RateLimit = _limit("Messages that a person may send.", RateLimit(1000, "minute"))
    rate_limit_connects: RateLimit = _limit("WebSockets that a person may open.", RateLimit(600, "minute"))
    rate_limit_polls: RateLimit = _limit("Polls that a person may make.", RateLimit(6000, "minute"))
    rate_limit_pages: RateLimit = _limit(
        "All else that a person may ask: pages, actions, older messages, tests, reports.", RateLimit(1200, "minute")
    )

    poll_interval: float = _seconds("Time between polls that cannot be held open.", 3.0)
    poll_max_retries: int = _setting(
        "How often a failed poll is retried before polling counts as lost.", 3, _number(0, 100, whole=True)
    )
    poll_backoff: float = _setting("Factor by which the wait between retries of a poll grows.", 1.5, _number(1, 10))
    poll_longest_hold: float = _seconds("Longest time a poll is held open; 0 means never.", 25.0, 0, 120)
    reconnect_interval: float = _seconds("Longest wait between attempts to connect.", 5.0)
    max_reconnect_attempts: int = _setting("Attempts before the state is `error`.", 10, _number(1, 1000, whole=True))
    heartbeat_interval: float = _seconds("Echo of a page that is not visible.", 30.0, 1)
    predict: tuple[str, ...] = _setting(
        "What makes a page poll beside a WebSocket that may be failing; `off`: only its end.",
        TRIGGERS,
        _or_off(_some_of(TRIGGERS, f"must be off, or some of {', '.join(TRIGGERS)}, commas between"), ()),
    )

    access_lifetime: float = _seconds("How long a session gives access; pages renew it before.", 3600.0, 1, 864_000)
    session_idle: float = _setting(
        "A sign-in that is not used ends after so many days.", 30.0, _number(0.00001, 3650), "days"
    )
    session_lifetime: float = _setting("Any sign-in ends after so many days.", 90.0, _number(0.00001, 3650), "days")
    metrics_token: str = _setting(
        "Bearer token with which Prometheus may read /metrics; without one only operators may.", "", _token, secret=True
    )
    log_format: str = _setting(
        "Form of the log: text, json, or auto, which is json unless it goes to a terminal.",
        "text",
        _one_of("text", "json", "auto"),
    )
    events_kept: float = _setting("Connection events are kept for so many days.", 14.0, _number(0.01, 3650), "days")
    minutes_kept: float = _setting("Figures of minutes are kept for so many days.", 30.0, _number(1, 3650), "days")
    hours_kept: float = _setting("Figures of hours are kept for so many days.", 730.0, _number(1, 36_500), "days")
    events_most: int = _setting(
        "The oldest connection events go earlier where metrics.db would become larger.",
        500,
        _number(10, 1_000_000, whole=True),
        "MB",
    )
    questions_kept: float = _setting(
        "Questions without a sure answer are kept, without who asked, for so many days; 0: none are.",
        90.0,
        _number(0, 3650),
        "days",
    )
    assistant: str = _setting("Who answers: builtin, openai or off.", "builtin", _one_of(*ASSISTANTS))
    assistant_pace: float = _setting("Speed of the built-in assistant.", 400.0, _number(1, 1e7), "characters a second")
    longest_answer: int = _setting(
        "An answer ends, in words, when it has become so long.",
        200_000,
        _number(1000, 10_000_000, whole=True),
        "characters",
    )
    openai_base_url: str = _setting("OpenAI-compatible server, such as http://127.0.0.1:8080/v1.", "", _origin)
    openai_api_key: str = _setting("Its key, where it wants one.", "", str.strip, secret=True)
    openai_model: str = _setting("Its model.", "", str.strip)
    openai_context_window: int = _setting(
        "Its context window; 0: it is found out when a conversation is too long.",
        0,
        _number(0, 10_000_000, whole=True),
        "tokens",
    )
    openai_temperature: float | None = _setting("Its temperature; its own if unset.", None, _number(0, 2))
    openai_max_tokens: int = _setting(
        "The longest answer asked for; 0: its own.", 0, _number(0, 1_000_000, whole=True), "tokens"
    )
    openai_models: tuple[str, ...] = _setting(
        "Models that people may choose from, commas between; all of its list if unset.", (), _names
    )
    openai_tokens_a_day: int = _setting(
        "What a person may use in a day; 0: as much as they like.", 0, _number(0, 1_000_000_000, whole=True), "tokens"
    )
    openai_timeout: float = _seconds("Its longest silence while it answers.", 60.0)
    openai_system_prompt: str = _setting(
        "What its model is told first; `off` for nothing.", SYSTEM_PROMPT, _or_off(str, "")
    )
    smtp_url: str = _setting(
        "Mail server of alerts, such as smtp://user:password@mail.example.org:587.", "", _smtp_url, secret=True
    )
    alert_emails: tuple[str, ...] = _setting("Who gets alerts by e-mail; commas between.", (), _emails)
    alert_webhook: str = _setting("Address to which alerts are posted.", "", _target, secret=True)
    alert_webhook_secret: str = _setting("Key of the signature of what is posted there.", "", str.strip, secret=True)
    alert_ping: str = _setting(
        "Address that is asked each minute while alerts are looked at (a dead man's switch).", "", _target, secret=True
    )
    drill_schedule: tuple[DrillSlot, ...] = _setting(
        "When to drill the fallback, such as `sun 04:00 refuse 60`.", (), _drill_slots
    )
    admin_name: str = _setting("Name of the first admin, made at the start of an empty database.", "", str)
    admin_email: str = _setting("E-mail of the first admin.", "", str)
    admin_password: str = _setting("Password of the first admin.", "", str, secret=True)

    database_url: str | None = _later("PostgreSQL instead of SQLite.", "PostgreSQL")
    redis_url: str | None = _later("Redis, for rate limits between hosts.", "Redis")


@dataclass(frozen=True)
class SettingRow:
    """One row of `chatapp config`."""

    name: str
    value: str
    source: str
    unit: str
    meaning: str


def load(environ: Mapping[str, str]) -> Settings:
    """Read and validate the settings. Raises ConfigError."""
    known = {field.name for field in fields(Settings)}
    for variable in environ:
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX).lower() not in known:
            raise ConfigError(f"{variable} is not a setting; `chatapp config` lists them all.")
    values: dict[str, Any] = {}
    for field in fields(Settings):
        variable, text = _lookup(field.name, environ)
        if text is not None and text != "":
            values[field.name] = _parse(variable, text, field.metadata)
    settings = Settings(**values)
    _check(settings)
    return settings


def describe(settings: Settings, environ: Mapping[str, str]) -> list[SettingRow]:
    """Return every setting with value, source and meaning; secrets are not shown."""
    rows = []
    for field in fields(Settings):
        variable, text = _lookup(field.name, environ)
        value = getattr(settings, field.name)
        shown = "(set)" if field.metadata.get("secret") and value else _show(value)
        meaning = field.metadata["sentence"] + (" (not built yet)" if "later" in field.metadata else "")
        source = variable if text else "default"
        rows.append(SettingRow(PREFIX + field.name.upper(), shown, source, field.metadata["unit"], meaning))
    return rows


def _lookup(name: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    variable = PREFIX + name.upper()
    if variable not in environ and name.upper() in UNPREFIXED and name.upper() in environ:
        variable = name.upper()
    return variable, environ.get(variable)


def _parse(variable: str, text: str, metadata: Mapping[str, Any]) -> Any:
    if "later" in metadata:
        raise ConfigError(f"{variable} is set, but {metadata['later']} is not built yet; unset it.")
    try:
        return metadata["parse"](text)
    except ValueError as error:
        shown = variable if metadata.get("secret") else f"{variable}={text!r}"
        raise ConfigError(f"{shown}: {error}.") from None


def _check(settings: Settings) -> None:
    _check_openai(settings)
    _check_alerts(settings)
    admin = [bool(settings.admin_name), bool(settings.admin_email), bool(settings.admin_password)]
    if any(admin) and not all(admin):
        raise ConfigError("CHATAPP_ADMIN_NAME, _EMAIL and _PASSWORD go together: set all three or none.")
    path = urlsplit(settings.public_url).path
    if path and path != settings.url_prefix:
        raise ConfigError(f"CHATAPP_PUBLIC_URL ends in {path!r}, but CHATAPP_URL_PREFIX is {settings.url_prefix!r}.")


def _check_alerts(settings: Settings) -> None:
    if bool(settings.smtp_url) != bool(settings.alert_emails):
        raise ConfigError("CHATAPP_SMTP_URL and CHATAPP_ALERT_EMAILS go together: set both or none.")
    if bool(settings.alert_webhook) != bool(settings.alert_webhook_secret):
        raise ConfigError("CHATAPP_ALERT_WEBHOOK and CHATAPP_ALERT_WEBHOOK_SECRET go together: set both or none.")


def _check_openai(settings: Settings) -> None:
    needed = {
        "CHATAPP_OPENAI_BASE_URL": settings.openai_base_url,
        "CHATAPP_OPENAI_MODEL": settings.openai_model,
    }
    missing = [name for name, value in needed.items() if not value]
    if settings.assistant == "openai" and missing:
        raise ConfigError(f"CHATAPP_ASSISTANT=openai needs {' and '.join(missing)}.")
    address = urlsplit(settings.openai_base_url)
    if address.username or address.query or address.fragment:  # not shown: it may hold a secret
        raise ConfigError("CHATAPP_OPENAI_BASE_URL is an address without a user, `?` or `#`; keys go elsewhere.")
    if re.search(r"\s", settings.openai_base_url):
        raise ConfigError("CHATAPP_OPENAI_BASE_URL has a space or a line break in it; an address has none.")
    if address.path.endswith("/completions"):
        raise ConfigError(
            "CHATAPP_OPENAI_BASE_URL goes up to, without, /chat/completions: such as http://127.0.0.1:8080/v1."
        )
    key = settings.openai_api_key
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "CHATAPP_OPENAI_API_KEY holds what no key has: a space, a line break, a letter with an accent."
        )


def _show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value) if not isinstance(value, float) else f"{value:g}"


def browser_config(
    settings: Settings,
    urls: Mapping[str, str],
    protocol: int,
    network: str,
    remembered: Mapping[str, Any] | None,
    access_ms: int,
    drill_ms: int,
) -> str:
    """Return the JavaScript's settings as JSON. Times are milliseconds if the name ends in _ms.

    `protocol`: the revision of docs/protocol.md. `network`: the key of the page's network, `remembered`: this
    person's experience there (network_memory.py).
    `access_ms`: the rest of the session's access. `drill_ms`: the rest of a drill for them.
    """
    return json.dumps(
        {
            **urls,
            "protocol": protocol,
            "network": network,
            "remembered": remembered,
            "transports": settings.transports,
            "heartbeat_ms": round(settings.heartbeat_interval * 1000),
            "predict": settings.predict,
            "reconnect_ms": round(settings.reconnect_interval * 1000),
            "max_attempts": settings.max_reconnect_attempts,
            "poll_ms": round(settings.poll_interval * 1000),
            "poll_retries": settings.poll_max_retries,
            "poll_backoff": settings.poll_backoff,
            "poll_hold_ms": round(settings.poll_longest_hold * 1000),
            "ws_max_message": settings.ws_max_message_size,
            "access_ms": access_ms,
            "drill_ms": drill_ms,
        }
    )
