"""Python's limit: a bare picows server. Text frames: `J<room>` joins (answered `J`), `M<room> <body>` is for the room.

Usage: picows_server.py PORT
"""

import asyncio
import os
import sys

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

ROOMS: dict[bytes, set[WSTransport]] = {}
PING_S = float(os.environ["BENCH_PING_S"])
LIVE: set[WSTransport] = set()


class Listener(WSListener):
    """One connection."""

    def __init__(self) -> None:
        super().__init__()
        self.room = b""

    def on_ws_connected(self, transport: WSTransport) -> None:
        LIVE.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        if frame.msg_type != WSMsgType.TEXT:
            return
        payload = frame.get_payload_as_bytes()
        if payload[:1] == b"J":
            self.room = payload[1:]
            ROOMS.setdefault(self.room, set()).add(transport)
            transport.send(WSMsgType.TEXT, b"J")
            return
        room, _, body = payload[1:].partition(b" ")
        message = b"M" + body
        for member in ROOMS.get(room, ()):
            member.send(WSMsgType.TEXT, message)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        LIVE.discard(transport)
        members = ROOMS.get(self.room)
        if members is not None:
            members.discard(transport)
            if not members:
                del ROOMS[self.room]


async def ping() -> None:
    """Ping everybody once an interval, spread over it."""
    slices = 250
    while True:
        for part in range(slices):
            for number, transport in enumerate(list(LIVE)):
                if number % slices == part:
                    transport.send_ping()
            await asyncio.sleep(PING_S / slices)


async def main(port: int) -> None:
    def accept(_request: WSUpgradeRequest) -> WSListener:
        return Listener()

    server = await ws_create_server(accept, "127.0.0.1", port, websocket_handshake_timeout=60, backlog=4096)
    beside = asyncio.create_task(ping())
    await server.serve_forever()
    await beside


asyncio.run(main(int(sys.argv[1])))
