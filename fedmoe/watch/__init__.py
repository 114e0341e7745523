"""Watching runs: `fedmoe status` in a terminal, `fedmoe watch` in a browser, and for Prometheus.

In reading order:
    sample.py    who takes part in a round, drawn again as the round loop draws it
    terminal.py  a run, or a line a run, for a terminal
    follow.py    the same again and again, until the end
    server.py    the local web server; the page itself is `fedmoe.watch.live.page`

`fedmoe.watch.live` says what the state of a run is.
"""
