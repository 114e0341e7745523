"""Flower's grid without Flower's processes: the real ClientApp answers, on a clock of the test."""

import json
import math
from threading import RLock

from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app
from fedmoe.messages.codec import sealed
from fedmoe.messages.records import Message as Packed

SERVER = 1


class FakeClock:
    """Time passes where somebody sleeps, and at no other time."""

    def __init__(self):
        self.now, self.events = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _, action in due:
            action()

    def at(self, seconds, action):
        """Do something when that time has come."""
        self.events.append((seconds, action))


class FakeGrid:
    """Nodes with the given configs; the newest finished message is answered first, one a call.

    A node carries out its messages one after another, as Flower's SuperNode does, and never those
    whose time was over before it came to them. `known` holds replies by client that need no
    training any more. `seconds(request)` says how long the node takes. `spoil(request, reply)`
    gives what arrives in place of a reply: other content, an error, or None for nothing.
    `registered` holds by node the name that its key was registered with. With
    `forgets` a message whose time is over is answered by Flower's own error, as the SuperLink does;
    without, its reply comes late.
    """

    def __init__(
        self,
        *configs,
        known=None,
        spoil=lambda request, reply: reply,
        seconds=lambda request: 0.0,
        forgets=False,
    ):
        self.configs = {100 + number: config for number, config in enumerate(configs)}
        self.known, self.spoil, self.seconds = known or {}, spoil, seconds
        self.forgets, self.clock, self.activated, self.registered = forgets, FakeClock(), {}, {}
        self.one_at_a_time = RLock()
        self.open, self.sent, self.done_at, self.ends, self.idle_at = {}, [], {}, {}, {}
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER, 1

    def get_nodes(self):
        return [
            NodeInfo(node_id=node, last_activated_at=self.activated.get(node, ""), name=name)
            for node, name in ((node, self.registered.get(node)) for node in self.configs)
        ]

    def restart(self, node):
        """The node was killed and is back before anyone looked: it forgets what it was given."""
        for name in [n for n, m in self.open.items() if m.metadata.dst_node_id == node]:
            del self.open[name]
        self.idle_at[node], self.activated[node] = self.clock.now, str(self.clock.now)

    def push_messages(self, messages):
        with self.one_at_a_time:
            for message in messages:
                self.push(message)
        return [message.metadata.message_id for message in messages]

    def push(self, message):
        node, number, now = message.metadata.dst_node_id, len(self.sent), self.clock.now
        end = now + message.metadata.ttl
        if message.metadata.message_type == MessageType.TRAIN:
            tasks = [m for m in self.open.values() if m.metadata.dst_node_id == node]
            tasks = [m for m in tasks if m.metadata.message_type == MessageType.TRAIN]
            assert all(self.ends[m.metadata.message_id] <= now for m in tasks), "two tasks at once"
        start = max(now, self.idle_at.get(node, 0.0))
        done = math.inf if start >= end else start + self.seconds(message)
        self.idle_at[node] = start if start >= end else done
        message.metadata.__dict__["_message_id"] = name = f"message {number}"
        self.open[name], self.done_at[name], self.ends[name] = message, done, end
        self.sent.append(message)

    def pull_messages(self, message_ids):
        with self.one_at_a_time:
            return self.pull(message_ids)

    def pull(self, message_ids):
        asked = [name for name in self.open if name in set(message_ids)]
        for name in reversed(asked):
            request = self.open[name]
            if request.metadata.dst_node_id not in self.configs:
                del self.open[name]
                return [Message(Error(5, "node_unavail"), reply_to=request)]
            if self.forgets and self.ends[name] <= self.clock.now:
                del self.open[name]
                return [Message(Error(3, "msg_unavail"), reply_to=request)]
            if self.done_at[name] <= self.clock.now:
                del self.open[name]
                reply = self.spoil(request, self.answer(request))
                return [] if reply is None else [Message(stamped(reply, request), reply_to=request)]
        return []

    def answer(self, request):
        """The node's reply: content or an error."""
        node = request.metadata.dst_node_id
        if (client := client_of(request)) in self.known:
            old = self.known[client]
            scalars = json.loads(old["config"]["scalars"])
            scalars["round"] = json.loads(request.content["config"]["scalars"])["round"]
            config = ConfigRecord({"scalars": json.dumps(scalars)})
            return sealed_reply(RecordDict({"config": config, "arrays": old["arrays"]}))
        try:
            return app(request, Context(1, node, self.configs[node], RecordDict(), {})).content
        except Exception as error:  # as Flower's own workers do
            return Error(2, f"{type(error)}:<'{error}'>")

    def clients_of(self, node):
        """The clients whose tasks were sent to the node with this number."""
        return [client_of(m) for m in self.sent if m.metadata.dst_node_id == 100 + node]


def sealed_reply(reply):
    """The reply with the checksum of what it carries, where it carries an update and names none."""
    config, arrays = reply["config"], reply.get("arrays")
    if "scalars" in config and arrays and "checksum" not in config:
        config["checksum"] = sealed(Packed(config["scalars"], arrays["buffer"].data)).checksum
    return reply


def stamped(reply, request):
    """The reply with the request's nonce, and a checksum, where it names none of its own."""
    if isinstance(reply, RecordDict) and "config" in reply:
        if "nonce" not in reply["config"]:
            reply["config"]["nonce"] = request.content["config"]["nonce"]
        sealed_reply(reply)
    return reply


def client_of(request):
    """The client a request is for; None when it asks the node for its name."""
    scalars = request.content["config"].get("scalars")
    return None if scalars is None else json.loads(scalars)["client"]
