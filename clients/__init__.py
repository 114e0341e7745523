"""What runs on a client's machine: a Flower ClientApp that carries out tasks.

In reading order:
    app.py        the two messages a node answers: `query` (who are you?) and `train`
    resident.py   the model and data of a run, built once per process and kept
    messages.py   Flower's records <-> the messages of `fedmoe/wire.py`

The way of one task: the server packs a `Task` into JSON scalars and one flat buffer; Flower
carries them as a `ConfigRecord` and an `ArrayRecord` of one array of raw bytes; `train` checks
that both sides run the same code, finds its resident model, unpacks the task against the model's
layout, trains, and packs the `Update` the same way. What goes wrong is sent back as a reason.

A node is not a client: the task names the client, and the node computes that client's share of
the data from the experiment. So two nodes can carry a hundred clients. A node that holds the data
of certain clients says so (`--node-config 'clients="0,3"'`) and is sent no other's tasks. Paths
that differ on its machine it sets itself (`overrides="data.path=/my/rows.jsonl"`). With
`upload.error_feedback` it needs a folder for what its clients have not sent yet
(`state="/my/folder"`); nodes that share tasks share the folder.

To add a message, add a handler to `app.py` and its records to both `messages.py`.
"""
