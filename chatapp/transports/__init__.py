"""The two transports. Both carry the same frames and are a cursor over the same feeds; nothing else differs.

A transport lets a client follow feeds from a cursor, brings what changed, takes messages and acknowledges them.
`register` hangs both into the app; which one a person uses is nobody's business above this room.
"""
