"""The forms of the log: lines for people, or one JSON object a line for programs. Written to the standard streams."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import IO, Any

FACTS = ("connection",)  # extra fields of a record that both forms show

REQUEST = re.compile(r'(?P<address>\S+) "(?P<method>\S+) (?P<path>.*)" (?P<status>\d+) (?P<bytes>\d+) (?P<ms>\d+)ms')
SOCKET = re.compile(
    r'(?P<address>\S+) - (?P<person>\S+) "WEBSOCKET (?P<path>\S+)" (?P<status>\d+) in=(?P<in>\d+) out=(?P<out>\d+) '
    r"(?P<seconds>[\d.]+)s (?P<connection>\S+)"
)


class TextFormatter(logging.Formatter):
    """The message as it is, then the connection that it is about, and the traceback of an error."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message. Called by logging."""
        told = [f"{name} {getattr(record, name)}" for name in FACTS if hasattr(record, name)]
        return f"{record.message} [{', '.join(told)}]" if told else record.message


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and what else the record knows."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Called by logging."""
        line = {"time": _utc(record.created), "level": record.levelname.lower(), "logger": record.name}
        line["message"] = record.getMessage()
        line |= {name: str(getattr(record, name)) for name in FACTS if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def access_json(line: str) -> str:
    """Return a line of the access log as JSON."""
    found = REQUEST.fullmatch(line) or SOCKET.fullmatch(line)
    told = found.groupdict() if found else {"message": line}
    return line_json("access", **{name: _number(value) for name, value in told.items()})


def line_json(logger: str, **facts: Any) -> str:
    """Return a line about what is no mistake."""
    return json.dumps({"time": _utc(time.time()), "level": "info", "logger": logger, **facts}, ensure_ascii=False)


def _number(text: str) -> str | int | float:
    if re.fullmatch(r"\d{1,15}", text, re.ASCII):
        return int(text)
    return float(text) if re.fullmatch(r"\d{1,15}\.\d+", text, re.ASCII) else text


def _utc(at: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))}.{int(at % 1 * 1000):03}Z"


def is_json(form: str, stream: IO[str] | None = None) -> bool:
    """Return True if a log of this setting is JSON; `auto`: where it goes to no terminal."""
    return form == "json" or (form == "auto" and not (stream or sys.stderr).isatty())


def init_logs(form: str) -> None:
    """Write the product's warnings and errors to standard error, in this form."""
    logger = logging.getLogger("chatapp")
    for kept in list(logger.handlers):
        if isinstance(kept, LogStream):
            logger.removeHandler(kept)
    handler = LogStream(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json(form) else TextFormatter())
    logger.addHandler(handler)


class LogStream(logging.StreamHandler[Any]):
    """The handler of `init_logs`."""
