"""The adapter: LoRA of every expert and shared part of a model, as views of one flat tensor."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedmoe.errors import WireError

RANK_AXES = {"A": -2, "B": -1}
"""Rank axes: `A` is (rank, in) and `B` (out, rank), of each expert or of a linear layer."""
SHIFT = "shift"
"""The kind of a trained router's whole difference, which has no rank."""
BLOCK_VALUES = 2**16
"""Values that stay in a core's cache for several looks: 256 KiB of usually 1 or 2 MiB."""


@dataclass(frozen=True)
class Entry:
    """One tensor of an adapter: its place in the model and in the flat buffer."""

    name: str
    """Module path and factor, e.g. `model.layers.0.mlp.experts.gate_up_proj.A`."""
    shape: tuple[int, ...]
    layer: int | None
    """Index of the MoE layer whose experts lead the shape; None for a part all tokens use."""
    start: int
    """Its first value in the flat buffer."""

    @property
    def stop(self) -> int:
        """The end of its values in the flat buffer."""
        return self.start + math.prod(self.shape)

    @property
    def kind(self) -> str:
        """The factor: `A`, `B`, or another that a strategy or the router adds."""
        return self.name.rpartition(".")[2]

    @property
    def rank_axis(self) -> int | None:
        """The rank axis, or None if the tensor has no rank."""
        return RANK_AXES.get(self.kind)


@dataclass(frozen=True)
class Layout:
    """The order and shapes of an adapter's tensors, the same on the server and on every client.

    Example:
        >>> tensors = [("mlp.experts.up.A", (8, 4, 16), 0), ("attention.q.A", (4, 16), None)]
        >>> layout = Layout.of(tensors, num_layers=1, num_experts=8, rank=4, alpha=8.0)
        >>> layout.size, layout.scale, layout.only("A") == layout
        (576, 2.0, True)
    """

    entries: tuple[Entry, ...]
    num_layers: int
    """MoE layers."""
    num_experts: int
    rank: int
    alpha: float

    @classmethod
    def of(
        cls,
        tensors: list[tuple[str, tuple[int, ...], int | None]],
        num_layers: int,
        num_experts: int,
        rank: int,
        alpha: float,
    ) -> Layout:
        """Return a layout of (name, shape, layer) one after another."""
        entries, start = [], 0
        for name, shape, layer in tensors:
            entries.append(Entry(name, shape, layer, start))
            start = entries[-1].stop
        return cls(tuple(entries), num_layers, num_experts, rank, alpha)

    @cached_property
    def size(self) -> int:
        """The number of values."""
        return self.entries[-1].stop if self.entries else 0

    @property
    def scale(self) -> float:
        """The factor in a change of the weights, `scale * B A`."""
        return self.alpha / self.rank

    @property
    def expert_paths(self) -> list[str]:
        """The module path of each layer's experts."""
        names = {e.layer: e.name for e in self.entries if e.layer is not None}
        return [name.rsplit(".", 2)[0] for name in names.values()]

    def with_rank(self, rank: int, scale: float | None = None) -> Layout:
        """Return the layout with `rank` components; without a `scale`, alpha stays the same."""
        tensors = []
        for e in self.entries:
            shape = list(e.shape)
            if e.rank_axis is not None:
                shape[e.rank_axis] = rank
            tensors.append((e.name, tuple(shape), e.layer))
        alpha = self.alpha if scale is None else scale * rank
        return Layout.of(tensors, self.num_layers, self.num_experts, rank, alpha)

    def only(self, *kinds: str) -> Layout:
        """Return the layout of the entries of these kinds."""
        kept = [(e.name, e.shape, e.layer) for e in self.entries if e.kind in kinds]
        return Layout.of(kept, self.num_layers, self.num_experts, self.rank, self.alpha)

    def plus(self, tensors: list[tuple[str, tuple[int, ...], int | None]]) -> Layout:
        """Return the layout of these entries with others after them."""
        own = [(e.name, e.shape, e.layer) for e in self.entries]
        return Layout.of(own + tensors, self.num_layers, self.num_experts, self.rank, self.alpha)

    @cached_property
    def digest(self) -> str:
        """A hash that two parties compare before they exchange flat buffers."""
        rows = [(e.name, e.shape, e.layer) for e in self.entries]
        text = json.dumps([rows, self.num_layers, self.num_experts, self.rank, self.alpha])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def views(self, flat: Tensor) -> Iterator[tuple[Entry, Tensor]]:
        """Yield each entry with its part of `flat`, shaped, without a copy."""
        for entry in self.entries:
            yield entry, flat[entry.start : entry.stop].view(entry.shape)


@dataclass(frozen=True, eq=False)
class Adapter:
    """All LoRA factors, or a difference of them, in one float32 buffer.

    Example:
        >>> layout = Layout.of([("up.A", (2, 3), None), ("up.B", (4, 2), None)], 0, 0, 2, 2.0)
        >>> adapter = Adapter(layout, torch.zeros(layout.size))
        >>> view = adapter["up.B"].add_(1)  # a view: it writes into `flat`
        >>> adapter.flat.sum().item(), (adapter - adapter).largest()
        (8.0, 0.0)
    """

    layout: Layout
    flat: Float[Tensor, " parameters"]

    def __post_init__(self) -> None:
        if self.flat.shape != (self.layout.size,):
            raise WireError(
                f"adapter of {tuple(self.flat.shape)} values; its layout has {self.layout.size}"
            )

    def __getitem__(self, name: str) -> Tensor:
        return next(view for entry, view in self.layout.views(self.flat) if entry.name == name)

    def __sub__(self, other: Adapter) -> Adapter:
        return replace(self, flat=torch.sub(self.flat, other.flat, out=new_flat(self.flat)))

    def __add__(self, other: Adapter) -> Adapter:
        return replace(self, flat=self.flat + other.flat)

    def views(self) -> dict[str, Tensor]:
        """Return every tensor by its name, without a copy."""
        return {entry.name: view for entry, view in self.layout.views(self.flat)}

    def copy(self) -> Adapter:
        """Return a copy of the values."""
        return replace(self, flat=new_flat(self.flat).copy_(self.flat))

    def largest(self) -> float:
        """Return the size of its largest value; see `largest`."""
        return largest(self.flat)

    def digest(self) -> str:
        """Return the sha256 of the values: equal for adapters that are bitwise identical."""
        return hashlib.sha256(self.flat.contiguous().numpy().tobytes()).hexdigest()


def new_flat(like: Float[Tensor, " values"]) -> Float[Tensor, " values"]:
    """Return float32 memory for as many values, where they are, not written yet."""
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.float32)
    # numpy 2 asks Linux for huge pages and torch 2.13 does not: a first touch takes a third.
    return torch.from_numpy(np.empty(like.shape, np.float32))


def largest(values: Float[Tensor, " values"]) -> float:
    """Return the size of the largest value: NaN if one is NaN, 0 if there is none."""
    # In blocks, which a core's cache holds for the second look: half the time of torch's aminmax.
    parts = [part.numpy() for part in values.split(BLOCK_VALUES) if len(part)]
    return abs(np.array([(part.max(), part.min()) for part in parts])).max(initial=0.0).item()


def initial_adapter(layout: Layout, generator: torch.Generator) -> Adapter:
    """Return an adapter that changes nothing: `A` uniform in 1/sqrt(in), `B` and shifts zero.

    The bounds are PEFT's default (`kaiming_uniform_` with `a = sqrt(5)`).
    """
    flat = torch.zeros(layout.size)
    for entry, view in layout.views(flat):
        if entry.name.endswith(".A"):
            bound = 1 / math.sqrt(entry.shape[-1])
            view.copy_(torch.rand(entry.shape, generator=generator).mul_(2 * bound).sub_(bound))
    return Adapter(layout, flat)


def keep_untouched(delta: Adapter, counts: Int[Tensor, "layers experts"]) -> Adapter:
    """Return `delta` with the rows of experts that no token reached set to zero.

    Weight decay and stale optimiser moments would otherwise move an expert without evidence.
    """
    if not (silent := counts == 0).any():
        return delta
    kept = delta.copy()
    for entry, view in delta.layout.views(kept.flat):
        if entry.layer is not None:
            view[silent[entry.layer]] = 0
    return kept


def components(entry: Entry, view: Tensor, start: int, count: int) -> Tensor:
    """Return `count` rank components from `start`, as a view; the whole tensor if it has none."""
    return view if entry.rank_axis is None else view.narrow(entry.rank_axis, start, count)


def place(source: Adapter, into: Adapter, *, last: bool = False) -> None:
    """Copy every tensor of `source` over the one of the same name in `into`.

    If `into` has more rank components, the first are replaced, or the `last`.
    """
    for entry, there, value in _shared(source, into):
        more = into.layout.rank - source.layout.rank
        components(entry, there, more if last else 0, source.layout.rank).copy_(value)


def cut(source: Adapter, layout: Layout, *, last: bool = False) -> Adapter:
    """Return the tensors of `layout` from `source`: the first rank components, or the `last`."""
    made = Adapter(layout, source.flat.new_empty(layout.size))
    for entry, there, value in _shared(made, source):
        more = source.layout.rank - layout.rank
        value.copy_(components(entry, there, more if last else 0, layout.rank))
    return made


def resized(source: Adapter, layout: Layout) -> Adapter:
    """Return `source` at the rank of `layout`: cut, or padded with zeros.

    `B` is multiplied by the ratio of the scales, which keeps `scale * B A` of each component.
    """
    made = Adapter(layout, source.flat.new_zeros(layout.size))
    rank, ratio = min(source.layout.rank, layout.rank), source.layout.scale / layout.scale
    for entry, there, value in _shared(made, source):
        part = components(entry, there, 0, rank)
        components(entry, value, 0, rank).copy_(part * ratio if entry.kind == "B" else part)
    return made


def _shared(small: Adapter, large: Adapter) -> Iterator[tuple[Entry, Tensor, Tensor]]:
    """Yield each entry of `small`, the tensor of its name in `large`, and its own tensor."""
    large_views = large.views()
    for entry, view in small.layout.views(small.flat):
        yield entry, large_views[entry.name], view
