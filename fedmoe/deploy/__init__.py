"""A server and its clients on separate machines: `fedmoe deploy init`.

In reading order:
    fleet.py    who takes part: the server's address, the clients' names and tiers
    keys.py     a private CA, the server's certificate, a key pair for every client
    app.py      the Flower app that is submitted: clients/, server/ and the experiment
    folder.py   all of it in one folder, with scripts, services and a README; whole or not at all

`templates/` has what files look like. `simulations.rehearsal` runs such a folder and kills parts
of it.
"""
