"""What runs on a client's machine: a Flower ClientApp that carries out tasks.

In reading order:
    app.py        the two messages a node answers: `query` (who are you?) and `train`
    about.py      what a node says of itself: name, clients, code, versions, machine
    resident.py   the model and data of a run, built once per process and kept
    worker_calls.py, worker.py    the process that keeps them on a SuperNode, and the way to it
    worker_frames.py, worker_home.py    what the two say to each other, and where they meet
    messages.py   Flower's records <-> the messages of `fedmoe/messages/codec.py`

The way of one task: the server packs a `Task` into JSON scalars and one flat buffer; Flower
carries them as a `ConfigRecord` and an `ArrayRecord` of one array of raw bytes; `train` checks
that both sides run the same code and hands the task to whoever holds the resident model, which
unpacks it against the model's layout, trains, and packs the `Update` the same way. What goes wrong
is sent back as a reason.

Flower's SuperNode starts a process for every message. So that a model is not loaded for each, the
first task starts a worker, which keeps it until its node ends, or nobody has asked for half an hour
(`worker_idle_seconds=600`; 0 for no worker). One that dies is replaced, and its task done again.

A node is not a client: the task names the client, and the node computes that client's share of
the data from the experiment. So two nodes can carry a hundred clients. A node that holds the data
of certain clients says so (`--node-config 'clients="0,3"'`) and is sent no other's tasks; one that
has a name (`name="lab-3090"`) is called so in the log, where Flower's own ids are random, and the
server's run config can say whom it serves. Paths that differ on its machine it sets itself
(`overrides="data.path=/my/rows.jsonl"`). With `upload.error_feedback` it needs a folder for what
its clients have not sent yet (`state="/my/folder"`); nodes that share tasks share the folder.

To add a message, add a handler to `app.py` and its records to both `messages.py`.
"""
