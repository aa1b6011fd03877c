"""Flask-SocketIO as its documentation starts it: rooms and nothing else. No session, no disk, no rendering."""

import os

from flask import Flask
from flask_socketio import SocketIO, emit, join_room

app = Flask(__name__)
app.secret_key = "bench"
sio = SocketIO(app, async_mode="gevent", ping_interval=float(os.environ["BENCH_PING_S"]), ping_timeout=20)


@sio.on("join")
def join(room: str) -> bool:
    join_room(room)
    return True


@sio.on("m")
def message(room: str, body: str) -> bool:
    emit("m", body, to=room)
    return True
