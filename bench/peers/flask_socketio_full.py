"""Flask-SocketIO that does what the product does: a session per socket, a FULL commit and the product's own template.

BENCH_DATABASE is the SQLite file, BENCH_TEMPLATES the product's templates, BENCH_PING_S the pings' interval.
"""

import os
import sqlite3
import threading
import time
import uuid
from datetime import UTC, datetime

from flask import Flask, session
from flask_socketio import SocketIO, emit, join_room
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

app = Flask(__name__)
app.secret_key = "bench"
sio = SocketIO(app, async_mode="gevent", ping_interval=float(os.environ["BENCH_PING_S"]), ping_timeout=20)
templates = Environment(loader=FileSystemLoader(os.environ["BENCH_TEMPLATES"]), autoescape=True)
templates.globals["_"] = str
draw = templates.get_template("conversation/_message.html").module.message
writer = threading.Lock()
database = sqlite3.connect(os.environ["BENCH_DATABASE"], isolation_level=None, check_same_thread=False)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=FULL")
database.execute("CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, person INTEGER NOT NULL)")
database.execute("CREATE TABLE IF NOT EXISTS rooms (id TEXT PRIMARY KEY, revision INTEGER NOT NULL)")
database.execute(
    "CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, room TEXT NOT NULL,"
    " client_id TEXT NOT NULL UNIQUE, position INTEGER NOT NULL, body TEXT NOT NULL, created_at INTEGER NOT NULL,"
    " UNIQUE (room, position))"
)


@app.get("/sign-in")
def sign_in() -> str:
    """A session, so that sockets have one to show."""
    session["token"] = str(uuid.uuid4())
    with writer:
        database.execute("INSERT INTO sessions VALUES (?, 1)", (session["token"],))
    return "ok"


@sio.on("connect")
def connect() -> bool:
    """Refuse who has no session."""
    found = database.execute("SELECT person FROM sessions WHERE token = ?", (session.get("token", ""),)).fetchone()
    return found is not None


@sio.on("join")
def join(room: str) -> bool:
    join_room(room)
    return True


@sio.on("m")
def message(room: str, body: str) -> bool:
    row = {
        "uuid": str(uuid.uuid4()),
        "client_id": str(uuid.uuid4()),
        "body": body,
        "created_at": time.time_ns() // 10**6,
    }
    with writer:
        database.execute("BEGIN IMMEDIATE")
        bump = (
            "INSERT INTO rooms VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET revision = revision + 1 RETURNING revision"
        )
        row["position"] = row["revision"] = database.execute(bump, (room,)).fetchone()[0]
        database.execute(
            "INSERT INTO messages (uuid, room, client_id, position, body, created_at) VALUES (?, ?, ?, ?, ?, ?)",
            (row["uuid"], room, row["client_id"], row["position"], body, row["created_at"]),
        )
        database.execute("COMMIT")
    shown = {
        **row,
        "author": "user",
        "state": "sent",
        "created_at": datetime.fromtimestamp(row["created_at"] / 1000, UTC),
    }
    html = f'<chat-feed feed="{escape(room)}" to="{row["position"]}">{Markup(draw(shown))}</chat-feed>'
    emit("m", html, to=room)
    return True
