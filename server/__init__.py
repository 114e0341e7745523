"""The server: a Flower ServerApp beside the SuperLink that runs a session over Flower's grid.

In reading order:
    app.py        reads the run config, loads the experiment, runs the session
    settings.py   how long to wait, and which named node serves whom
    transport.py  tasks out, updates in: what `fedmoe/rounds.py` calls a transport
    nodes.py      who is there, who fits, who is busy, and which nodes may serve a client
    about.py      what a node says of itself, checked
    round.py      one round: which task is where, what came back, what is late
    post.py       messages that are out: each comes back as a reply or as a reason
    pulls.py      replies fetched, so that a slow upload holds up nothing but itself
    messages.py   the messages of `fedmoe/messages/codec.py` <-> Flower's records
    log.py        the run as lines of Flower's log

The way of one task: `pack_task` makes JSON scalars and one flat buffer of it; they travel as a
`ConfigRecord` (with the experiment, a digest of our code and a random nonce) and an `ArrayRecord`
of one array of raw bytes; a node of `clients/` answers in kind, with the nonce. Nothing of a reply
is used before `unpack_update` has checked it against its task; a reply that is late, refused or
damaged becomes a `Failure` with its reason, and the round goes on. Evaluation runs here, in the
server's process.

Time has three bounds. `node_seconds` is how long a round waits for its nodes before it begins; one
that is here and silent, as after a crash of the server, is waited for as long as a task may take.
`task_seconds` is how long one client's update may take: it keeps a node that hangs from holding up
those who could have had its place. `round_seconds` ends the round: what is open then is late,
and what was never sent is, too. A message's own time, after which Flower drops it and its reply, is
the shorter of the two that are left. A node that let a message go by gets no other until it has
answered something. A task whose node has left goes to another node that may have it.

What arrived is aggregated if it is enough (`quorum` of the experiment, a share of the round's
clients). A round with less ends the run as failed, with nothing of it in the model: `resume=auto`
does that round again. So does a round without nodes, and a run in which nothing was aggregated.
"""
