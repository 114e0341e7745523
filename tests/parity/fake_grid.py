"""Flower's grid without Flower's processes: the real ClientApp answers on the spot."""

import json

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app

SERVER = 1


class FakeGrid:
    """Nodes with the given configs; the newest message is answered first, one a look.

    `known` holds replies by client that need no training any more. `spoil(request, reply)` gives
    what arrives in place of a reply: other content, an error, or None for nothing.
    """

    def __init__(self, *configs, known=None, spoil=lambda request, reply: reply):
        self.configs = {100 + number: config for number, config in enumerate(configs)}
        self.known, self.spoil = known or {}, spoil
        self.open, self.sent = {}, []
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER, 1

    def get_node_ids(self):
        return list(self.configs)

    def push_messages(self, messages):
        for message in messages:
            node = message.metadata.dst_node_id
            assert node not in {open_.metadata.dst_node_id for open_ in self.open.values()}
            message.metadata.__dict__["_message_id"] = f"message {len(self.sent)}"
            self.open[message.metadata.message_id] = message
            self.sent.append(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids):
        request = self.open.pop(max(self.open.keys() & set(message_ids), default=None), None)
        if request is None:
            return []
        reply = self.spoil(request, self.answer(request))
        return [] if reply is None else [Message(reply, reply_to=request)]

    def answer(self, request):
        """What the node would send: content or an error."""
        node = request.metadata.dst_node_id
        if (client := client_of(request)) in self.known:
            return self.known[client]
        try:
            return app(request, Context(1, node, self.configs[node], RecordDict(), {})).content
        except Exception as error:  # as Flower's own workers do
            return Error(2, f"{type(error)}:<'{error}'>")

    def clients_of(self, node):
        """The clients whose tasks were sent to the node with this number."""
        return [client_of(m) for m in self.sent if m.metadata.dst_node_id == 100 + node]


def client_of(request):
    """The client a request is for; None when it asks the node for its name."""
    scalars = request.content["config"].get("scalars")
    return None if scalars is None else json.loads(scalars)["client"]
