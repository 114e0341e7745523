"""The client's side of a Flower run: a ClientApp that carries out tasks.

In reading order:
    app.py        the two messages that a node answers: `query` (who are you?) and `train`
    about.py      a node's description of itself: name, clients, code, versions, machine
    resident.py   the model and data of a run, prepared once per process
    masks.py      the steps of secure aggregation, whose keys the worker has in memory
    worker_calls.py, worker.py    calls to the process that keeps them on a SuperNode, and itself
    worker_frames.py, worker_home.py    the frames that pass between the two, and their socket
    messages.py   Flower's records <-> the messages of `fedmoe/messages/codec.py`

A task's way: the server packs a `Task` into JSON scalars and one flat buffer; Flower carries them
as a `ConfigRecord` and an `ArrayRecord` of one array of raw bytes; `train` checks that both sides
run the same code and passes the task to the process that holds the model, which unpacks it against
the model's layout, trains, and packs the `Update` the same way. If anything fails, the reply is a
reason.

Flower's SuperNode starts a process for every message. So that each need not load the model, the
first task starts a worker, which keeps it until its node ends or nobody has called for half an hour
(`worker_idle_seconds=600`; 0 for no worker). A worker that dies is replaced, and its task repeated.

A node is not a client: the task names the client, and the node computes that client's share of the
data from the experiment. So two nodes can serve a hundred clients. A node that holds the data of
certain clients names them (`--node-config 'clients="0,3"'`) and is sent no other's tasks; one with
a name (`name="lab-3090"`) appears under it in the log, where Flower's own ids are random, and the
server's run config can assign clients to it. It sets paths that differ on its machine
(`overrides="data.path=/my/rows.jsonl"`). With `upload.error_feedback` it needs a folder for what
its clients have not sent yet (`state="/my/folder"`); nodes that share tasks share the folder.

To add a message, add a handler to `app.py` and its records to both `messages.py`.
"""
