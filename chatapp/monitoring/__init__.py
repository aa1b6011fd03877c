"""Monitoring: from connection events to figures, roll-ups and the sentence on top of `/monitor`.

timeline.py     what each page did: states, attempts, sockets; one pass over the events
figures.py      what is counted in a minute, added up over hours, and the metrics made of it
rollups.py      the thread that keeps minutes, hours and live pages up to date
present.py      who is connected how, now, and how the server is
own.py          one person's connection now, in words, for the assistant
causes.py       what is behind a reason: whose fault, in words, and the remedy
verdict.py      what is wrong, with whom, and what to do, in a sentence
charts.py       the strip and the sparklines; lanes.py one page's states as a picture
worker_rows.py  a row of each worker: connections, CPU, memory, delays
rules.py        the alert rules; alerts.py their states; replay.py runs the examples of vectors.json
incidents.py    alerts in words; channels.py the ways of a notice; watch.py looks, and sends; loops.py its threads
counters.py     counts since the first start, which never fall; exposition.py their text for Prometheus
errors.py       errors of pages and server by their fingerprint
"""
