"""The benchmarks' idle clients pass through the round loop as any others; how figures are taken."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedmoe.data.text import Tokens
from fedmoe.messages.records import Task
from fedmoe.runs.local.in_process import InProcess
from fedmoe.training.client import train_client
from fedmoe.training.settings import Training
from simulations.benchmarks.idle import idle_run, one_round
from simulations.benchmarks.measure import Options, in_turns, ratio
from simulations.benchmarks.memory import Peak, array_bytes
from simulations.benchmarks.trace import NODE, OTHER, PARTS, _part, calls_of, traced


@pytest.mark.parametrize(("requested", "taken"), [(None, 5), (2, 2)])
def test_a_round_of_idle_clients(requested, taken):
    run, trained = idle_run(5, width=2), []

    class Watched(InProcess):
        def __call__(self, tasks):
            trained.extend(task.client for task in tasks)
            return super().__call__(tasks)

    after = one_round(run, Watched(run.server, run.scorer), requested)
    assert after.round == 1
    assert len(set(trained)) == taken
    assert after.adapter.digest() == run.setup.initial.digest()


def test_one_thread_is_timed_by_what_it_computes():
    clocks = [Options(threads=n).clock.__name__ for n in (1, 2)]
    assert clocks == ["thread_time", "perf_counter"]


def test_steps_take_turns_and_the_first_is_a_warm_up():
    done = []
    seconds = in_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2)
    assert done == ["a", "b"] * 3
    assert [len(taken) for taken in seconds.values()] == [2, 2]
    assert ratio([3.0, 4.0, 90.0], [1.0, 2.0, 1.0]) == 3.0


def test_memory_is_that_of_the_moment_of_most():
    assert array_bytes(lambda: np.ones(2**20)) == pytest.approx(2**23, rel=0.01)
    with Peak() as peak:
        held = np.ones(2**24)
        time.sleep(0.5)
        del held
    assert 2**26 < peak.bytes - peak.before < 2**29


def test_a_trace_tells_the_parts_of_a_step_apart_and_loses_no_time(tiny_model, random_adapter):
    model = tiny_model()
    adapter = random_adapter(model.layout)
    task = Task(1, 0, "all", 1, torch.ones(model.layout.num_layers), adapter)
    made = Training(steps=1, batch_size=2, probe_examples=1)
    rows = [Tokens(tuple(range(1, 9)), 2)] * 2
    run = SimpleNamespace(setup=SimpleNamespace(model=model))
    found = traced(run, lambda: train_client(model, rows, 0, task, made, 1, 0))
    by_part, by_operator = found
    assert {*by_part} == {*PARTS, OTHER}
    assert by_part.total() == pytest.approx(by_operator.total())
    assert by_operator["matrix products"] > 0


def test_a_gradient_belongs_to_the_part_whose_forward_it_undoes():
    node = SimpleNamespace(name=f"{NODE}MmBackward0", sequence_nr=7, cpu_parent=None)
    product = SimpleNamespace(name="aten::mm", sequence_nr=-1, cpu_parent=node)
    assert _part(product, {7: "experts"}) == "experts"
    assert _part(product, {}) == OTHER


def test_a_call_is_timed_without_the_calls_inside_it(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0])  # the whole takes 7, and of those the product 2
    monkeypatch.setattr("simulations.benchmarks.trace.time.thread_time", lambda: next(clock))
    loss = torch.ones(1, requires_grad=True).sum()
    assert calls_of(lambda: loss.backward()) == {"backward": 2 * 10**6, "the rest": 5 * 10**6}
