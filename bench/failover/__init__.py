"""`make failover`: the same faults, at the same moment and through the same proxy, on the product and on socket.io 4.

cells.py      what is done and when: one cell a fault
faults.py     how each fault is done to the stage
stage.py      servers of both, and the people who sign in
proxies.py    real nginx, haproxy and squid
drivers.py    processes that hold clients; ours.py, chromium.py and peer/clients.mjs are what runs in them
helper.py     the other person, who posts and reads past all proxies
trial.py      one cell from beginning to end
measure.py    what each trial showed, from the proxy's record and the clients' events
drained.py    200 clients after a drain
bars.py       the bars of the issue, met or not
report.py     JSON and Markdown
"""
