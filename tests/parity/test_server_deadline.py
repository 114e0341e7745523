"""A node knows how long its server waits."""

from types import SimpleNamespace

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from clients import app as clientapp
from fedmoe.errors import FedMoEError


def test_how_long_the_server_waits_goes_into_the_order(monkeypatch):
    orders = []

    def answer(order, *_):
        orders.append(order)
        raise FedMoEError("enough")

    monkeypatch.setattr(clientapp, "answer", answer)
    monkeypatch.setattr(clientapp, "check_code", lambda _: None)
    monkeypatch.setattr(clientapp, "replied", lambda message, reply: reply)
    words = {"experiment": "rounds: 1", "run": "r", "scalars": "{}", "checksum": 1, "nonce": "n"}
    arrays = ArrayRecord({"buffer": Array("uint8", (1,), "bytes", b"x")})
    content = RecordDict({"config": ConfigRecord(words), "arrays": arrays})
    message = SimpleNamespace(content=content, metadata=SimpleNamespace(ttl=12.5))
    clientapp.train(message, Context(1, 1, {}, RecordDict(), {}))
    assert [order.deadline_seconds for order in orders] == [12.5]
