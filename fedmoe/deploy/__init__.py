"""A server and its clients on machines of their own: keys, scripts, services, and a rehearsal.

In reading order:
    fleet.py       who takes part: the server's address, the clients' names and tiers
    keys.py        a private CA, the server's certificate, a key pair for every client
    app.py         the Flower app that is submitted: clients/, server/ and the experiment
    folder.py      all of it in one folder, with scripts, services and a README; whole or not at all
    processes.py   the scripts as processes that can be found, killed and started again
    kills.py       who is killed at which moment of a run
    watching.py    one run, its kills, and an operator who submits it again
    rehearse.py    runs with kills against a run without; the table of what came of each
    command.py     `fedmoe deploy init | rehearse`

What a file looks like is in `templates/`.
"""
