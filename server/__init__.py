"""What runs beside the SuperLink: a Flower ServerApp that runs a session over Flower's grid.

In reading order:
    app.py        reads the run config, loads the experiment, runs the session
    transport.py  tasks out, updates in: what `fedmoe/rounds.py` calls a transport
    nodes.py      who is there, whether they run our code, and which client goes to which node
    post.py       messages that are out: each comes back as a reply or as a reason
    messages.py   the messages of `fedmoe/wire.py` <-> Flower's records
    log.py        the run as lines of Flower's log

The way of one task: `pack_task` makes JSON scalars and one flat buffer of it; they travel as a
`ConfigRecord` (with the experiment and a digest of our code) and an `ArrayRecord` of one array of
raw bytes; a node of `clients/` answers in kind. Nothing of a reply is used before `unpack_update`
has checked it against its task; a reply that is late, refused or damaged becomes a `Failure` with
its reason, and the round goes on. Evaluation runs here, in the server's process.
"""
