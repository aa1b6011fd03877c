"""`make failover`: the same faults, at the same moment and through the same proxy, on the product and on socket.io 4.

cells.py      the cells: one fault each, with its times
faults.py     the injection of each fault
stage.py      servers of both, and the people who sign in
proxies.py    real nginx, haproxy and squid
drivers.py    processes that hold clients; they run ours.py, chromium.py or peer/clients.mjs
helper.py     the other person, who posts and reads past all proxies
trial.py      one cell from beginning to end
measure.py    the results of each trial, from the proxy's record and the clients' events
drained.py    200 clients after a drain
bars.py       the thresholds, met or not
report.py     JSON and Markdown
"""
