"""The Flower ServerApp beside the SuperLink: it runs a session over Flower's grid.

In reading order:
    app.py        reads the run config, loads the experiment, runs the session
    settings.py   timeouts, and which named node serves which clients
    transport.py  tasks out, updates in: a transport as in `fedmoe/rounds.py`
    nodes.py      nodes: present, fit, busy, and which may serve a client
    about.py      a node's description of itself, checked
    round.py      one round: where each task is, which answers came, which are late
    masks.py      the steps of secure aggregation: a round of five messages, each client on one node
    stream.py     the same without rounds, for asynchronous strategies
    post.py       messages in flight: each ends as a reply or a reason
    pulls.py      fetching of replies, so that a slow upload delays only itself
    messages.py   the messages of `fedmoe/messages/codec.py` <-> Flower's records
    log.py        the run as lines of Flower's log

`pack_task` turns a task into JSON scalars and one flat buffer. They travel as a `ConfigRecord`
(with the experiment, a digest of our code and a random nonce) and an `ArrayRecord` of one array of
raw bytes; a node of `clients/` answers in the same form, with the nonce. `unpack_update` checks a
reply against its task before anything in it is used. A late, refused or damaged reply becomes a
`Failure` with its reason, and the round continues. Evaluation runs in the server's process.

There are three timeouts. `node_seconds` bounds the wait for nodes before a round; a node that is
present but silent, as after a crash of the server, is waited for up to `task_seconds`.
`task_seconds` bounds one client's update, so that a hanging node does not delay others.
`round_seconds` ends the round: everything open or unsent is then late. A message expires, in
Flower too, after the shorter of what is left of the two. A node that missed a message gets no other
until it has answered something. A task whose node has left goes to another node that may have it.

An asynchronous run has no rounds to end: there `round_seconds` bounds one task with all its
repeats, from when its client was chosen. A client is chosen only while a node that serves it is
idle.

The updates of a round are aggregated if there are enough of them (the experiment's `quorum`, a
share of the round's clients). Otherwise the round is discarded and the run fails; `resume=auto`
does that round again. A round without nodes, or a run in which nothing was aggregated, fails, too.
"""
