"""The whole product against a simulated network and clock, from one seed.

Real: the page's shipped core (tests/headless), the store on SQLite in memory, the rules, the renderer, the server's
side of a connection. Simulated: time, chance, the network, crashes, an assistant that writes from a script.

`python -m simulation SEED` replays one schedule, `--schedules N` runs many.
"""
