"""The connection: its state machine, the server's side of one connection, and the events that are recorded."""
