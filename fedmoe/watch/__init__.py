"""Watching runs: `fedmoe status` in a terminal, `fedmoe watch` in a browser, and for Prometheus.

Everything is read from the run's folder: watching cannot change or delay a run.

In reading order:
    state.py       the state of a run and of a folder of runs, as values; JSON is their fields
    read_state.py  from a run's folder to its state
    estimates.py   whether a run is at work, and the time left
    folder.py      the runs in a folder, read again only when they have changed
    tables.py      the tables of terminal and page
    status.py      a run, or a row per run, on a terminal
    charts.py      scores and expert load as numbers, drawn by templates/charts.html
    page.py        the page, from templates/; server.py: the local web server
    prometheus.py  metrics
"""
