r"""Norms and inner products of updates as changes of the product BA, from factors alone.

A client's update of one weight is

$$P = s \big((B + dB)(A + dA) - B A\big) = s \big(dB\,(A + dA) + B\,dA\big)$$

of rank 2r, and an inner product of two such needs r^2 numbers of each pair of factors:

$$\langle X Y, Z W \rangle = \mathrm{sum}\big((X^T Z) * (Y W^T)\big)$$

No dense delta is ever formed. Everything is per owner: an expert of a layer with all its weights,
or all shared parts together. What is no pair of factors (a router's shift, the core of FedSB)
counts as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedmoe.adapter import Adapter, Layout

MEASURES = 4
"""Norms of an owner's update: of the change of products and all else, of dA, of dB, of all else."""
CACHED = 2**20
"""Values of all clients that are multiplied at a time."""
Known = dict[str, tuple[Tensor, Tensor]]
"""By the name of an A: the Gram matrices of the state's A and B, which all updates share."""


class Moves(NamedTuple):
    r"""Squared norms of one update, by owner, if the deltas are multiplied by t.

    $$\|P(t)\|^2 = t^2 (a + 2 t b + t^2 c), \quad P(t) = t\,(dB A + B dA) + t^2\,dB\,dA$$
    """

    linear: Float[Tensor, " owners"]
    """The a."""
    cross: Float[Tensor, " owners"]
    """The b."""
    quadratic: Float[Tensor, " owners"]
    """The c."""
    plain: Float[Tensor, "three owners"]
    """Squared norms of dA, of dB, and of what is no factor."""

    def norms(self, t: Tensor | float = 1.0) -> Float[Tensor, "measures owners"]:
        """Return the norms when the deltas are multiplied by `t`."""
        t = torch.as_tensor(t, dtype=torch.float64)
        product = t * t * (self.linear + 2 * t * self.cross + t * t * self.quadratic)
        return torch.cat([product[None], t * t * self.plain]).clamp(min=0).sqrt()


class Part(NamedTuple):
    """One weight's factors, each with its experts first: one for a shared part."""

    name: str
    owners: slice
    A: Tensor
    B: Tensor
    dA: Tensor
    dB: Tensor


def num_owners(layout: Layout) -> int:
    """Return the number of experts of all layers, and one for shared parts."""
    return layout.num_layers * layout.num_experts + 1


def owners_of(layout: Layout, layer: int | None) -> slice:
    """Return the places of a layer's experts among the owners, or that of the shared parts."""
    first = (layout.num_layers if layer is None else layer) * layout.num_experts
    return slice(first, first + (1 if layer is None else layout.num_experts))


def column(
    rows: Float[Tensor, " owners"], layout: Layout, layer: int | None, like: Tensor
) -> Tensor:
    """Return a number for each owner, shaped to multiply a tensor of them."""
    mine = rows[owners_of(layout, layer)]
    lead = mine if layer is not None else mine.reshape(())
    return lead.reshape(*lead.shape, *[1] * (like.dim() - lead.dim())).to(like.dtype)


def scaled(delta: Adapter, factors: Float[Tensor, " owners"]) -> Adapter:
    """Return a delta with every owner's part multiplied; the same object where all stay."""
    if bool((factors == 1).all()):
        return delta
    made = Adapter(delta.layout, delta.flat.clone())
    for entry, view in made.layout.views(made.flat):
        view *= column(factors, delta.layout, entry.layer, view)
    return made


def moves_of(state: Adapter, delta: Adapter, known: Known | None = None) -> Moves:
    """Return the squared norms of one update of the state, in float64.

    What is `known` of the state is not computed again, and what is not is added: a third of all.
    """
    known = {} if known is None else known
    owners = num_owners(delta.layout)
    found = torch.zeros(3, owners, dtype=torch.float64)
    plain = torch.zeros(3, owners, dtype=torch.float64)
    for part in _parts(state, delta):
        A, B, dA, dB = part[2:]
        if part.name not in known:
            known[part.name] = _wide(A @ A.mT), _wide(B.mT @ B)
        aa, bb = known[part.name]
        ad, dd = (_wide(x @ dA.mT) for x in (A, dA))
        bd, ee = (_wide(x.mT @ dB) for x in (B, dB))
        square, mine = delta.layout.scale**2, part.owners
        found[0, mine] += square * (_dot(ee, aa) + _dot(bb, dd) + 2 * _dot(bd.mT, ad))
        found[1, mine] += square * (_dot(ee, ad) + _dot(bd, dd))
        found[2, mine] += square * _dot(ee, dd)
        plain[0, mine] += _trace(dd)
        plain[1, mine] += _trace(ee)
    for mine, view in _others(state, delta):
        plain[2, mine] += view.double().square().sum(-1)
    found[0] += plain[2]
    return Moves(found[0], found[1], found[2], plain)


def gram(state: Adapter, deltas: Sequence[Adapter]) -> Float[Tensor, "owners clients clients"]:
    """Return the inner products of all pairs of updates, owner by owner, in float64."""
    layout, n = deltas[0].layout, len(deltas)
    found = torch.zeros(num_owners(layout), n, n, dtype=torch.float64)
    square = layout.scale**2
    for parts in zip(*(_parts(state, delta) for delta in deltas), strict=True):
        B, r = parts[0].B, parts[0].A.shape[-2]
        left = torch.cat([*(p.dB for p in parts), B], -1)
        right = torch.cat([*(p.A + p.dA for p in parts), *(p.dA for p in parts)], -2)
        lefts, rights = _blocks(_wide(left.mT @ left), r), _blocks(_wide(right @ right.mT), r)
        ends, steps, both = rights[:, :n, :n], rights[:, n:, n:], rights[:, :n, n:]
        mixed = torch.einsum("eiab,eijab->eij", lefts[:, :n, n], both)
        total = torch.einsum("eijab,eijab->eij", lefts[:, :n, :n], ends) + mixed + mixed.mT
        total += torch.einsum("eab,eijab->eij", lefts[:, n, n], steps)
        found[parts[0].owners] += square * total
    for views in zip(*(_others(state, delta) for delta in deltas), strict=True):
        rows = torch.stack([view.double() for _, view in views], 1)
        found[views[0][0]] += rows @ rows.mT
    return found


def cosines(state: Adapter, deltas: Sequence[Adapter]) -> Float[Tensor, "clients clients"]:
    r"""Return the cosines of all pairs of whole updates, float64; 0 for one that moves nothing.

    They are of the linear part of the change, dB A + B dA, which is what a mean of factors
    averages: an update with its sign turned has its cosines turned, whatever its size.
    """
    found = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for parts in zip(*(_parts(state, delta) for delta in deltas), strict=True):
        for some in zip(*(_few(part, len(parts)) for part in parts), strict=True):
            A, B, square = some[0].A, some[0].B, deltas[0].layout.scale ** 2
            aa, bb = A @ A.mT, B.mT @ B
            found += square * _pairs([p.dB @ aa for p in some], [p.dB for p in some])
            found += square * _pairs([bb @ p.dA for p in some], [p.dA for p in some])
            mixed = _pairs([B.mT @ p.dB for p in some], [p.dA @ A.mT for p in some])
            found += square * (mixed + mixed.T)
    for views in zip(*(_others(state, delta) for delta in deltas), strict=True):
        rows = [view for _, view in views]
        found += _pairs(rows, rows)
    norms = found.diagonal().clamp(min=0).sqrt()
    return found / (norms[:, None] * norms).clamp(min=1e-150)


def _parts(state: Adapter, delta: Adapter) -> Iterator[Part]:
    """Yield the pairs of factors of which at least one is sent; one that is not stands still."""
    sent, there = delta.views(), state.views()
    for entry in state.layout.entries:
        a, b = entry.name, entry.name[:-1] + "B"
        if entry.kind != "A" or b not in there or not {a, b} & sent.keys():
            continue
        moved = (sent[n] if n in sent else torch.zeros_like(there[n]) for n in (a, b))
        led = [x if entry.layer is not None else x[None] for x in (there[a], there[b], *moved)]
        yield Part(a, owners_of(delta.layout, entry.layer), *led)


def _few(part: Part, times: int) -> Iterator[Part]:
    """Yield so few experts of a part at a time that so many of them fit the processor's cache."""
    tensors = part[2:]
    step = max(1, CACHED // (times * max(x[0].numel() for x in tensors)))
    for rows in zip(*(x.split(step) for x in tensors), strict=True):
        yield Part(part.name, part.owners, *rows)


def _others(state: Adapter, delta: Adapter) -> Iterator[tuple[slice, Tensor]]:
    """Yield what is no factor of a product, a row for each owner."""
    there = {entry.name for entry in state.layout.entries}
    for entry, view in delta.layout.views(delta.flat):
        pair = {entry.name[:-1] + kind for kind in "AB"}
        if entry.rank_axis is None or not pair <= there:
            rows = delta.layout.num_experts if entry.layer is not None else 1
            yield owners_of(delta.layout, entry.layer), view.reshape(rows, -1)


def _blocks(grams: Tensor, r: int) -> Tensor:
    """Return (experts, i, j, r, r) of stacked Gram matrices."""
    n = grams.shape[-1] // r
    return grams.view(-1, n, r, n, r).transpose(2, 3)


def _wide(x: Tensor) -> Tensor:
    return x.double()


def _pairs(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Return the inner products of every x with every y."""
    rows, others = (torch.stack([tensor.reshape(-1) for tensor in side]) for side in (x, y))
    return _wide(rows @ others.T)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum((-2, -1))


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)
