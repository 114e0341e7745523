"""Bytes that a model saves for backward outside its experts, from a dry run on shapes.

`budget.model` has a formula for the experts. Around them families differ (shared experts, dense
layers, linear attention, Mamba, streams), and a formula for each would be wrong with the next one.
So one decoder layer of each kind is run on fake tensors, which have shapes and no values, and the
tensors that autograd saves are added up. It takes a second or two, and no memory.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from fedmoe.models.families import MoELayer, set_top_k
from fedmoe.models.private import SeenBy, fake_tensors, replaced

INDICES = ("layer_idx", "layer_id", "block_idx")
"""Numbers that differ between layers of one kind."""
LENGTHS = (0.25, 0.5, 1, 2, 3)
"""Lengths of the sequences that are run, in steps; the last three are equally far apart."""


@dataclass(frozen=True)
class Saved:
    """Bytes that a model takes outside its experts, for one sequence of each of some lengths."""

    lengths: tuple[int, ...]
    kept: tuple[float, ...]
    """Bytes saved for backward."""
    working: tuple[float, ...]
    """The most bytes that exist for a while on top; backward needs as many."""

    def of(self, tokens: int, length: int) -> float:
        """Return the bytes saved of so many tokens in sequences of this length."""
        return tokens / length * self._at(length, self.kept)

    def outside_bytes(self, tokens: int, length: int) -> float:
        """Return the bytes that a layer works with on top of those."""
        return tokens / length * self._at(length, self.working)

    def without(self, per_token: float) -> Saved:
        """Return the sizes with so many bytes of each token taken off."""
        fewer = (size - n * per_token for size, n in zip(self.kept, self.lengths, strict=True))
        return replace(self, kept=tuple(fewer))

    def _at(self, length: int, sizes: tuple[float, ...]) -> float:
        """Interpolate between lengths, and beyond; on a parabola where scores are saved."""
        (first, step), n = _growth(*sizes[-3:]), length / self.lengths[-3]
        if n >= 1 and step > 0:
            return sizes[-3] + first * (n - 1) + step * (n - 1) * (n - 2)
        points = list(pairwise([(0, 0.0), *zip(self.lengths, sizes, strict=True)]))
        (n0, s0), (n1, s1) = next((x for x in points if x[1][0] >= length), points[-1])
        return s0 + (s1 - s0) * (length - n0) / (n1 - n0)


def _growth(one: float, two: float, three: float) -> tuple[float, float]:
    """Return the growth of sizes from 1 to 2, and half of its own growth."""
    return two - one, (three - 2 * two + one) / 2


class Unknown(torch.autograd.Function):
    """Experts that return the shape of an answer and save nothing."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weights: Tensor, trained: Tensor) -> Tensor:
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        raise AssertionError("a run on shapes goes forward alone")


class Live:
    """Bytes of the tensors that exist, now and at the most; each storage counts once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.storages: set[int] = set()

    def see(self, tensor: Tensor) -> None:
        """Count a tensor until its storage is gone."""
        storage = tensor.untyped_storage()
        if id(storage) not in self.storages:
            self.storages.add(id(storage))
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, id(storage), storage.nbytes())

    def _gone(self, storage: int, size: int) -> None:
        self.storages.discard(storage)
        self.now -= size


def saved_outside(
    body: nn.Module, layers: Sequence[MoELayer], top_k: int, step: int
) -> Saved | None:
    """Return the bytes that `body`, ids to hidden states, saves; None where it has no dry run.

    Bytes that do not grow with the length, such as factors in the weights' type, are left out.

    Args:
        body: on any device; its values are not read, and it is left as it was.
        layers: its sparse layers.
        top_k: experts of each token; it changes little.
        step: tokens that its recurrent layers take at once.
    """
    lengths = tuple(int(step * n) for n in LENGTHS)
    before = layers[0].top_k
    set_top_k(list(layers), top_k)
    try:
        runs = [_saved(body, layers, length) for length in lengths]
    except Exception:  # whatever fake tensors cannot follow: the plan then says so
        return None
    finally:
        set_top_k(list(layers), before)
    kept, working = (_growing(sizes) for sizes in zip(*runs, strict=True))
    return Saved(lengths, kept, working)


def _growing(sizes: tuple[int, ...]) -> tuple[float, ...]:
    """Return the sizes without their part that no token causes."""
    first, step = _growth(*sizes[-3:])
    fixed = sizes[-3] - first + (2 * step if step > 0 else 0)
    return tuple(max(size - max(fixed, 0), 0) for size in sizes)


def _saved(body: nn.Module, layers: Sequence[MoELayer], length: int) -> tuple[int, int]:
    """Return the bytes saved of one sequence, and those that a layer works with on top."""
    found: dict[int, tuple[int, Any]] = {}
    live = Live()
    with ExitStack() as stack:
        stack.enter_context(fake_tensors())
        state = _fake_state(body)
        own = {id(storage): storage for storage in (x.untyped_storage() for x in state.values())}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if id(storage) not in own:  # alive in the list: no id comes twice
                found[id(storage)] = storage.nbytes(), storage
            return tensor

        counted = stack.enter_context(_one_of_each_kind(body, layers, found))
        stack.enter_context(_without_experts(layers))
        stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
        stack.enter_context(SeenBy(live.see))
        given = {"input_ids": torch.zeros(1, length, dtype=torch.long), "use_cache": False}
        functional_call(body, state, kwargs=given, tie_weights=False)
    kept = sum(size for size, _ in found.values())
    return kept + sum(counted), max(live.most - kept, 0)


def _fake_state(body: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers of the same names, shapes and types on a processor."""
    state = {
        name: torch.empty(p.shape, dtype=p.dtype, requires_grad=p.requires_grad)
        for name, p in body.named_parameters(remove_duplicate=False)
    }
    for name, buffer in body.named_buffers(remove_duplicate=False):
        state[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return state


@contextmanager
def _without_experts(layers: Sequence[MoELayer]) -> Iterator[None]:
    """Make experts answer without computing, as if they were trained."""
    trained = torch.empty(1, requires_grad=True)

    def forward(hidden: Tensor, _index: Tensor, weights: Tensor) -> Any:
        return Unknown.apply(hidden, weights, trained)

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced(layer.experts, "forward", forward))
        yield


@contextmanager
def _one_of_each_kind(
    body: nn.Module, layers: Sequence[MoELayer], found: dict[int, tuple[int, Tensor]]
) -> Iterator[list[int]]:
    """Run the first layer of each kind alone, and count its bytes again for the others."""
    seen: dict[Any, tuple[int, Any]] = {}
    counted: list[int] = []

    def once(kind: str, run: Any) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            this = kind, hidden.requires_grad  # the first layer's input needs no gradient
            if this in seen:
                size, out = seen[this]
                counted.append(size)
                return out
            before = sum(size for size, _ in found.values())
            out = run(hidden, *args, **kwargs)
            seen[this] = sum(size for size, _ in found.values()) - before, out
            return out

        return forward

    with ExitStack() as stack:
        for layer in _decoder_layers(body, layers):
            stack.enter_context(replaced(layer, "forward", once(_kind(layer), layer.forward)))
        yield counted


def _decoder_layers(body: nn.Module, layers: Sequence[MoELayer]) -> Iterator[nn.Module]:
    """Yield all layers of the list that contains the sparse ones."""
    inside = {id(layer.block) for layer in layers}
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and any(id(m) in inside for m in module.modules()):
            yield from module
            return


def _kind(layer: nn.Module) -> str:
    """Return a key that is equal for layers that save the same: modules, numbers, shapes."""
    parts = []
    for name, module in layer.named_modules():
        plain = [
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str) and key not in INDICES
        ]
        shapes = [tuple(p.shape) for p in module.parameters(recurse=False)]
        parts.append((name, type(module).__name__, plain, shapes))
    return re.sub(r"\s", "", repr(parts))
