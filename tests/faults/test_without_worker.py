"""Nodes that need no worker of their own."""

import os
import sys
from types import SimpleNamespace

import pytest

if sys.platform != "linux":
    pytest.skip("workers need Linux", allow_module_level=True)

from clients.worker_calls import answer, idle_seconds_of
from clients.worker_frames import Order
from clients.worker_home import node_here
from fedmoe.errors import FedMoEError
from fedmoe.system.processes import process_of


def test_a_process_that_lives_on_needs_no_worker():
    assert node_here() is None


def test_a_node_can_do_without_a_worker(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/flwr-clientapp"])
    assert node_here() == process_of(os.getppid())
    here = SimpleNamespace(carry_out=lambda order, buffer: (order, bytes(buffer)))
    monkeypatch.setitem(sys.modules, "clients.resident", here)
    order = Order("tiny", "", "", None, [], "")
    assert answer(order, b"abc", 0.0, 60.0) == (order, b"abc")


@pytest.mark.parametrize("value", ["soon", -1, "nan"])
def test_idle_seconds_that_are_none_are_refused(value):
    assert idle_seconds_of({}) > 0
    assert idle_seconds_of({"worker_idle_seconds": "30"}) == 30
    with pytest.raises(FedMoEError, match="worker_idle_seconds is"):
        idle_seconds_of({"worker_idle_seconds": value})
