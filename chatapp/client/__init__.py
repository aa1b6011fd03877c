"""A complete client of docs/protocol.md in Python, over both transports on the browser's own state table.

feeds.py      reads the server's elements and applies them: messages by position and revision, blocks by offset
outbox.py     what is to be sent, until it is acknowledged
websocket.py  one socket: its proof and its failure detector
polling.py    polls: held, plain, and the heartbeat beside a held one
core.py       joins them with the state machine. No I/O and no clock: events in, actions out (the simulator runs it)
site.py       one WebSocket, single requests, the sign-in
wire.py       `Client`: the core with sockets, HTTP and threads

It knows nothing of the server's code, and works with and without gevent's patches.
"""

from chatapp.client.core import Core, Settings
from chatapp.client.feeds import Entry, Feed, Message
from chatapp.client.outbox import Outgoing
from chatapp.client.site import NotSignedIn
from chatapp.client.wire import Client

__all__ = ["Client", "Core", "Entry", "Feed", "Message", "NotSignedIn", "Outgoing", "Settings"]
