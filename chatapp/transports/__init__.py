"""WebSocket and HTTP polling: the same frames, and cursors over the same feeds.

Both deliver changes after a client's cursors; messages go over WebSocket or by POST. Nothing above this package may
depend on the transport in use.
"""
