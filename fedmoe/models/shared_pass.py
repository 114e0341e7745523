"""One pass over the batches of several clients, each with an adapter of its own.

Frozen weights are read once for all: their products take all rows of an expert, and those of LoRA
the rows of one client and one expert. Rows are sorted by expert and then by client, so that an
expert's rows are those of neighbouring pairs. The adapters are one flat buffer in which the values
of an expert stand client after client (`stacked`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmoe.adapter import Entry, Layout
from fedmoe.models.routed import (
    GROUPED_ROWS,
    Block,
    Routing,
    Stacked,
    blocks,
    groupable,
    route,
    sent,
    unwaited,
)

if TYPE_CHECKING:
    from fedmoe.models.lora import LoRALinear

Output = tuple[Tensor, Tensor, Tensor]
"""A router's logits (tokens, experts), weights and index (tokens, top_k)."""


@dataclass(frozen=True, eq=False)
class SharedPass:
    """The owner of each token of a pass: they come client after client."""

    sizes: Sequence[int]
    """Tokens of each client; one without any is none the worse."""
    device: torch.device

    @property
    def number(self) -> int:
        """Clients in the pass."""
        return len(self.sizes)

    @cached_property
    def client(self) -> Tensor:
        """int64 (tokens,): the place of each token's client."""
        owners = [torch.full((size,), place) for place, size in enumerate(self.sizes)]
        return sent(torch.cat(owners), self.device)

    def route(self, index: Tensor, num_experts: int) -> PairRouting:
        """Group the pairs in `index` (tokens, top_k) by expert, and those of each by client."""
        number = self.number
        client = self.client.repeat_interleave(len(index) // len(self.client)).unsqueeze(1)
        pair = (index * number + client).clamp(max=num_experts * number)
        pairs = route(pair, num_experts * number)
        return PairRouting(_joined(pairs, number), pairs)

    def linear(self, layer: LoRALinear, x: Tensor) -> Tensor:
        """Return an adapted linear layer's output for tokens (tokens, in)."""
        base, a, b = layer.base, layer.A.to(x.dtype), layer.B.to(x.dtype)
        if unwaited(x):
            a, b, *_ = groupable((a, b, a, b))
        out = SharedLinear.apply(x, base.weight, base.bias, a, b, layer.scale, self._tokens)
        assert isinstance(out, Tensor)
        return out

    def choose_apart(
        self, top_ks: Sequence[int], router: nn.Module, inputs: tuple[Tensor, ...], output: Output
    ) -> Output:
        """Return what a router chooses for each client's tokens at its own k, as a router's hook.

        Slots that a client has none of are filled with "no expert", at a weight of 0.
        """
        logits, weights, index = output
        most = int(router.top_k)  # pyright: ignore[reportArgumentType]
        hidden = inputs[0].reshape(len(index), -1)
        try:
            for k in {*top_ks} - {most}:
                rows = self._tokens_of([place for place, own in enumerate(top_ks) if own == k])
                router.top_k = k  # pyright: ignore[reportArgumentType]
                _, some, chosen = router.forward(hidden[rows], *inputs[1:])
                weights = weights.index_copy(0, rows, F.pad(some, (0, most - k)))
                chosen = F.pad(chosen, (0, most - k), value=logits.shape[-1])
                index = index.index_copy(0, rows, chosen)
        finally:
            router.top_k = most  # pyright: ignore[reportArgumentType]
        return logits, weights, index

    def of_tokens(self, values: Tensor) -> Tensor:
        """Return each token's (tokens, 1) of its clients' values (clients,)."""
        return values[self.client].unsqueeze(1)

    def _tokens_of(self, places: Sequence[int]) -> Tensor:
        """Return the numbers of the tokens of some clients."""
        ends = [*accumulate(self.sizes)]
        spans = [torch.arange(ends[i] - self.sizes[i], ends[i]) for i in places]
        return sent(torch.cat(spans), self.device)

    @cached_property
    def _tokens(self) -> Block:
        """All tokens, grouped by client: as those that chose a single expert."""
        routing = self.route(torch.zeros_like(self.client).unsqueeze(1), 1)
        (block,) = routing.blocks(unwaited(self.client))
        return block.pairs


class PairRouting(NamedTuple):
    """The rows of a layer by expert, and the same ones by expert and client."""

    joint: Routing
    pairs: Routing

    @property
    def counts(self) -> Tensor:
        """int64 (experts * clients,): rows of each pair."""
        return self.pairs.counts

    def told(self) -> Routing:
        """Return the rows by expert, on the host; see `Routing.told`."""
        return self.joint.told()

    def blocks(self, grouped: bool) -> Iterator[PairBlock]:
        """Yield the blocks of a layer; see `routed.blocks`."""
        fine = self.pairs if grouped else self.pairs.told()
        number = len(fine.counts) // len(self.joint.counts)
        for block in blocks(self.joint, grouped):
            place = slice(block.experts.start * number, block.experts.stop * number)
            sizes, ends = fine.sizes and fine.sizes[place], fine.ends
            if sizes is not None:
                few = len(block.token) < GROUPED_ROWS * len(sizes)
                ends = fine.counts[place].cumsum(0).int() if grouped and few else None
            none = None if ends is None else (fine.counts[place] == 0).view(-1, 1, 1)
            same = {"experts": place, "sizes": sizes, "ends": ends, "empty": none}
            pairs = replace(block, **same, expert=fine.expert)
            yield PairBlock(**vars(block), pairs=pairs, num_experts=len(self.joint.counts))


def _joined(pairs: Routing, number: int) -> Routing:
    """Return the rows of pairs by expert alone."""
    counts = pairs.counts.view(-1, number).sum(1)
    if pairs.sizes is None:
        ends = pairs.ends[number - 1 :: number].contiguous()
        return pairs._replace(counts=counts, ends=ends, expert=pairs.expert // number)
    sizes = [sum(pairs.sizes[i : i + number]) for i in range(0, len(pairs.sizes), number)]
    return pairs._replace(counts=counts, sizes=sizes)


@dataclass(frozen=True, eq=False, kw_only=True)
class PairBlock(Block):
    """A block whose products group rows by expert, or by pair where weights are those of pairs."""

    pairs: Block
    num_experts: int

    def _of(self, w: Stacked) -> Block | None:
        return None if w.shape[0] == self.num_experts else self.pairs

    def mm(self, x: Tensor, w: Stacked) -> Tensor:
        block = self._of(w)
        return super().mm(x, w) if block is None else block.mm(x, w)

    def addmm_(self, out: Tensor, x: Tensor, w: Tensor, scale: float) -> None:
        block = self._of(w)
        super().addmm_(out, x, w, scale) if block is None else block.addmm_(out, x, w, scale)

    def outer(self, left: Tensor, right: Tensor, into: Tensor) -> None:
        block = self._of(into)
        super().outer(left, right, into) if block is None else block.outer(left, right, into)


class SharedLinear(torch.autograd.Function):
    """A frozen linear layer plus `s B_c A_c x` for the rows x of client c, which `block` groups."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        block: Block,
    ) -> Tensor:
        low, out = block.mm(x, a.mT), F.linear(x, weight, bias)
        block.addmm_(out, low, b.mT, scale)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale, ctx.block = scale, block
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        dy, block, dx = grads[0].contiguous(), ctx.block, None
        da, db = torch.zeros_like(a), torch.zeros_like(b)
        dlow = block.mm(dy, b).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            block.addmm_(dx, dlow, a, 1.0)
        block.outer(dlow, x, da)
        block.outer(dy, low * ctx.scale, db)
        return dx, None, None, da, db, None, None


def stacked(layout: Layout, number: int) -> Layout:
    """Return the layout of the adapters of so many clients, each of which has `layout`.

    A tensor of experts has an expert's values client after client, any other one all values.
    """
    tensors = [(e.name, _shape(e, number), e.layer) for e in layout.entries]
    experts = layout.num_experts * number
    return Layout.of(tensors, layout.num_layers, experts, layout.rank, layout.alpha)


def _shape(entry: Entry, number: int) -> tuple[int, ...]:
    if entry.layer is None:
        return (number, *entry.shape)
    return (entry.shape[0] * number, *entry.shape[1:])


def by_client(layout: Layout, flat: Tensor, number: int) -> Iterator[tuple[Entry, Tensor]]:
    """Yield each tensor of all clients (clients, ...), as views of the stacked values `flat`."""
    views = stacked(layout, number).views(flat)
    for own, (entry, view) in zip(layout.entries, views, strict=True):
        if entry.layer is not None:
            view = view.unflatten(0, (-1, number)).transpose(0, 1)
        yield own, view
