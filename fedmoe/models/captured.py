"""CUDA graphs of a micro-batch's passes: one for each budget and shape, replayed in one launch.

A GPU computes a small step faster than a processor starts its kernels. So batches are padded to few
shapes; the first of a shape runs as any other; from the second on its forward and backward pass is
captured, and replayed. Clipping and the optimiser, a few kernels on flat buffers, stay outside.
What cannot be captured runs as it would without, and that is said.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmoe.errors import FedMoEWarning

if TYPE_CHECKING:
    from fedmoe.models.adapted import AdaptedModel

IGNORED = -100
"""The target that adds nothing to a cross-entropy (torch's own)."""
TENSORS = "input_ids", "valid", "positions", "targets"
"""The parts of a batch that its passes read."""
SHORTEST = 16
"""Lengths up to this share a shape, and so do numbers of targets."""
Passes = Callable[[Any, Tensor], None]
"""Adds the gradients of a batch's summed loss, times a factor."""


class Shape(NamedTuple):
    """The sizes of a padded batch."""

    rows: int
    length: int
    targets: int


def shape_of(batch: Any) -> Shape:
    """Return the shape that a batch is padded to.

    Rows and targets grow in powers of two, lengths in quarters of them: at most 4 lengths between
    L and 2 L, and a quarter more tokens, which reach no expert.
    """
    rows, length = batch.input_ids.shape
    targets = _up(len(batch.targets), 1, SHORTEST)
    return Shape(_up(rows, 1, 1), _up(length, 4, SHORTEST), targets)


def _up(size: int, parts: int, least: int) -> int:
    """Round up to one of `parts` sizes from a power of two to the next, and to `least`."""
    size = max(size, least)
    step = max(1, 2 ** (size - 1).bit_length() // (2 * parts))
    return -(-size // step) * step


def padded(batch: Any, shape: Shape) -> Any:
    """Return a batch of this shape with the same loss: what is added is no token and no target."""
    (rows, length), position = batch.input_ids.shape, batch.positions
    more = (0, shape.length - length, 0, shape.rows - rows)
    fill = (0, shape.targets - len(batch.targets))
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, more),
        valid=F.pad(batch.valid, more),
        positions=F.pad(position // length * shape.length + position % length, fill),
        targets=F.pad(batch.targets, fill, value=IGNORED),
    )


@dataclass(eq=False)
class Captured:
    """One shape's tensors, which a graph reads and writes, and the graph."""

    batch: Any
    share: Tensor
    counts: Tensor
    rescaler: Tensor
    graph: torch.cuda.CUDAGraph | None = None

    def fill(self, batch: Any, share: float, rescaler: Tensor) -> None:
        """Copy what the next replay works on; nobody waits for it to arrive."""
        for name in TENSORS:
            into, values = getattr(self.batch, name), getattr(batch, name)
            into.copy_(values.pin_memory() if into.is_cuda else values, non_blocking=True)
        self.share.fill_(share)
        self.rescaler.copy_(rescaler)


class Graphs:
    """The graphs of a resident model."""

    def __init__(self, model: AdaptedModel) -> None:
        self.model, self.pool, self.fault = model, None, ""
        self.found: dict[Any, Captured] = {}
        self.flat: Tensor | None = None
        self.said: set[str] = set()

    def run(self, batch: Any, share: float, counts: Tensor, passes: Passes) -> bool:
        """Replay the graph of the batch's shape; return whether there is one.

        `counts` (layers, experts) are the tokens routed so far; those of the batch are added.
        """
        model = self.model
        if fault := self.fault or self._fault():
            self.say(fault)
            return False
        if self.flat is not model.flat:  # another rank: the buffers that graphs know are gone
            self.found, self.flat = {}, model.flat
        shape, rescales = shape_of(batch), model.states[0].rescaler is not None
        key = shape, model.top_k, model.frozen.used, rescales, model.states[0].recompute
        batch = padded(batch, shape)
        if key not in self.found:
            parts = {name: getattr(batch, name).to(model.device) for name in TENSORS}
            factor, none = torch.full((), share, device=model.device), torch.zeros_like(counts)
            rescaler = model.rescaler.detach().clone()
            self.found[key] = Captured(replace(batch, **parts), factor, none, rescaler)
            return False
        captured = self.found[key]
        captured.fill(batch, share, model.rescaler)
        captured.graph = captured.graph or self._capture(captured, passes)
        if captured.graph is None:
            return False
        captured.graph.replay()
        counts += captured.counts
        return True

    def _capture(self, captured: Captured, passes: Passes) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with self._own(captured), torch.cuda.graph(graph, pool=self.pool):
                captured.counts.zero_()
                passes(captured.batch, captured.share)
        except RuntimeError as error:
            self.fault = f"{error}".splitlines()[0]
            self.say(self.fault)
            return None
        self.pool = graph.pool()
        return graph

    @contextmanager
    def _own(self, captured: Captured) -> Iterator[None]:
        """Let the layers read and write a graph's tensors in place of those of the round."""
        states = self.model.states
        before = [(state.counts, state.rescaler) for state in states]
        for i, state in enumerate(states):
            state.counts = captured.counts[i]
            state.rescaler = None if state.rescaler is None else captured.rescaler[i]
        try:
            yield
        finally:
            for state, (counts, rescaler) in zip(states, before, strict=True):
                state.counts, state.rescaler = counts, rescaler

    def _fault(self) -> str:
        """Return why the passes of the model as it is now cannot be captured; empty if they can."""
        model, states = self.model, self.model.states
        faults = {
            "the model is not causal": model.form.name != "causal",
            "the gating draws or decides on the host": not model.gates.gating.own,
            "a rescaler is trained": model.rescaling.learned,
            "routers are modulated": bool(model.modulations),
            "LoRA's inputs are dropped": model.dropout > 0,
            "the client keeps some experts only": any(x.left_out is not None for x in states),
            "some choices learn nothing": any(x.without is not None for x in states),
            "experts are offloaded": any(x.stored and x.stored[0].is_elsewhere for x in states),
        }
        return next((fault for fault, is_so in faults.items() if is_so), "")

    def say(self, fault: str) -> None:
        """Warn, once for each reason, that steps are not captured."""
        if fault not in self.said:
            self.said.add(fault)
            said = f"model.graphs: {fault}; these steps are not captured, but started one by one"
            warnings.warn(said, FedMoEWarning, stacklevel=4)
