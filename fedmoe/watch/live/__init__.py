"""A run as it stands now, finished, at work or dead, for whoever watches it.

In reading order:
    state.py     a run now, as one value; JSON is its fields
    parts.py     what it is made of: tiers, clients of the round, failures, expert load
    pace.py      whether it is at work, and how long it has left
    place.py     the runs in a folder, read again only when they have changed
    svg.py       scores per round and expert load, drawn without a script
    views.py     the tables, as text
    page.py      the page of `fedmoe watch`; look.py is its style sheet and its script

Everything is read from the run's folder: watching cannot change or delay a run.
"""
