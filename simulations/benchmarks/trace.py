"""Where the time of a quickstart step goes, by `torch.profiler`, and that of a round, by its calls.

A step's shares are the profiler's and its times are those shares of the processor time without it:
it slows small operators and Python down. What backward computes belongs to the part whose forward
it undoes. A round has some hundred steps, of which the profiler would keep gigabytes: the processor
time of its calls is taken instead, each without the calls inside it.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from fedmoe import rounds
from fedmoe.config import load_experiment
from fedmoe.runs import client_side
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import Prepared, prepare
from fedmoe.runs.server_side import ServerSide
from fedmoe.training import client
from fedmoe.training.learner import Learner
from simulations.benchmarks.measure import Options, Row
from simulations.benchmarks.passes import local_rounds

NODE = "autograd::engine::evaluate_function: "
GROUPS = {
    "matrix products": r"(mm|bmm|addmm|baddbmm|_grouped_mm|linear|matmul|dot)$",
    "attention": "scaled_dot_product|flash",
    "gathers and sums by index": "index|gather|scatter|embedding|searchsorted|sort|bincount|topk",
    "copies and allocation": "copy|_to_copy|empty|cat|contiguous|clone|zero|fill|new_|narrow",
    "loss and softmax": "softmax|nll|cross_entropy|logsumexp",
}
"""Operators by their names; all others compute by element."""
OTHER = "the rest: optimiser, batches, copies"
PARTS = ("experts", "routers", "attention", "norms", "embedding", "residuals", "head and loss")
CALLS = {
    (client, "mean_loss"): "loss probes",
    (client, "step_batches"): "batches",
    (client, "response_loss"): "forward and loss",
    (torch.Tensor, "backward"): "backward",
    (Learner, "move"): "clipping and optimiser",
    (client_side, "train_client"): "the rest of local rounds",
    (ClientSide, "answer"): "messages and their checks",
    (ServerSide, "read"): "messages and their checks",
    (rounds, "finish_round"): "aggregation",
}
"""Calls that are told apart in a round, where they are looked up."""


def rows(options: Options) -> Iterator[Row]:
    """Yield a step's time by part and by operator, and a round's by phase."""
    less = ["training.steps=1", "clients_per_round=1"] if options.quick else []
    run, steps = prepare(load_experiment("quickstart", less)), 1 if options.quick else 4
    for top_k in (1, 4):
        alone = local_rounds(run, (top_k,), steps)["one after another"]
        seconds = options.turns({"step": alone})["step"]
        for kind, spent in zip(("part", "operators"), traced(run, alone), strict=True):
            yield from table(f"a step at k = {top_k}, by {kind}", spent, min(seconds) / steps)
    one_round(run)
    spent = calls_of(lambda: one_round(run))
    yield from table("a round, by call", spent, spent.total() / 1e6)


def table(what: str, spent: Counter[str], seconds: float) -> Iterator[Row]:
    """Yield a row for each part, the largest first."""
    for part, taken in spent.most_common():
        share = taken / spent.total()
        yield Row(what, part, f"{1e3 * share * seconds:.1f} ms", note=f"{share:.1%}")


def one_round(run: Prepared) -> None:
    """Carry out the first round with as many clients as the config says."""
    server, e = run.server, run.setup.experiment
    rounds.run_rounds(
        server.first_state(),
        server.members,
        e.aggregation,
        InProcess(server, run.scorer),
        [],
        num_rounds=1,
        clients_per_round=server.clients_per_round,
        seed=e.seed,
        send=server.send_to,
    )


def traced(run: Prepared, step: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """Return the microseconds of a call by part of the run's model and by operator."""
    with watched(run), profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events, parts = found.events() or (), dict[int, str]()
    # By autograd's number of a node, the part of the operator that made it: the last in forward
    # with that number, which those before it that made none have, too.
    for event in events:
        if event.sequence_nr >= 0 and _node(event) is None:
            parts[event.sequence_nr] = _range(event)
    by_part, by_operator = Counter[str](), Counter[str]()
    for event in events:
        by_operator[_group(event.name)] += event.self_cpu_time_total
        by_part[_part(event, parts)] += event.self_cpu_time_total
    return by_part, by_operator


def _range(event: Any) -> str:
    """Return the innermost part around an event."""
    while event is not None:
        if event.name in PARTS:
            return event.name
        event = event.cpu_parent
    return OTHER


def _node(event: Any) -> Any:
    """Return the event of autograd's node in which an event is; None in forward."""
    while event is not None and not event.name.startswith(NODE):
        event = event.cpu_parent
    return event


def _part(event: Any, parts: Mapping[int, str]) -> str:
    """Return an event's part; in backward that of the operator whose gradient it computes."""
    node = _node(event)
    return _range(event) if node is None else parts.get(node.sequence_nr, OTHER)


def _group(name: str) -> str:
    if "::" not in name or name.startswith("autograd::"):
        return "Python, and starting operators"
    found = (group for group, pattern in GROUPS.items() if re.search(pattern, name))
    return next(found, "by element")


@contextmanager
def watched(run: Prepared) -> Iterator[None]:
    """Name the parts of a model while it computes."""
    model, handles = run.setup.model, list[Any]()
    experts = {id(layer.experts) for layer in model.layers}

    def part_of(module: nn.Module) -> str | None:
        kind = type(module).__name__
        if id(module) in experts:
            return "experts"
        if any(id(child) in experts for child in module.children()):
            return "routers"
        names = {"Attention": "attention", "RMSNorm": "norms", "Embedding": "embedding"}
        names |= {"DecoderLayer": "residuals"}
        return next((part for end, part in names.items() if kind.endswith(end)), None)

    def begin(part: str, open_: list[Any]) -> Callable[..., None]:
        def hook(*_: Any, **__: Any) -> None:
            open_.append(record_function(part))
            open_[-1].__enter__()

        return hook

    for module in model.model.modules():
        if part := part_of(module):
            open_: list[Any] = []
            handles.append(module.register_forward_pre_hook(begin(part, open_)))
            end = lambda *_, open_=open_: open_.pop().__exit__(None, None, None)  # noqa: E731
            handles.append(module.register_forward_hook(end))
    with patch.object(client, "response_loss", named("head and loss", client.response_loss)):
        yield
    for handle in handles:
        handle.remove()


def calls_of(work: Callable[[], object]) -> Counter[str]:
    """Return the microseconds of this thread in each of `CALLS`, without those inside it."""
    spent, inside = Counter[str](), [0.0]

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.thread_time() - begun
                spent[phase] += round(1e6 * (seconds - inside.pop()))
                inside[-1] += seconds

        return call

    with ExitStack() as stack:
        for (place, name), phase in CALLS.items():
            stack.enter_context(patch.object(place, name, timed(phase, getattr(place, name))))
        timed("the rest", work)()
    return spent


def named(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose calls the profiler knows by the name of a part."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return function(*args, **kwargs)

    return call
