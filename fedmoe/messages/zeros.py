"""Rank components that are zero in every tensor of an adapter, which need not travel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout


def zero_components(adapter: Adapter) -> range:
    """Return the first run of rank components that are 0.0 in all tensors; empty if there is none.

    A merged part has such whose sum is of a lower rank. -0.0 is no zero: it would not come back.

    Example:
        >>> layout = Layout.of([("q.A", (3, 2), None), ("q.B", (1, 3), None)], 0, 0, 3, 3.0)
        >>> adapter = Adapter(layout, torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0]))
        >>> zeros = zero_components(adapter)
        >>> zeros, without(adapter, zeros)
        (range(1, 2), tensor([1., 2., 0., 0., 3., 4.]))
    """
    layout, zero = adapter.layout, None
    for entry, bits in layout.views(adapter.flat.detach().view(torch.int32)):
        if entry.rank_axis is not None:
            found = (bits.movedim(entry.rank_axis, 0).flatten(1) == 0).all(1)
            zero = found if zero is None else zero & found
            if not zero.any():  # of most adapters after the first A, which has values in every row
                break
    rows = [] if zero is None else zero.tolist()
    if True not in rows:
        return range(0)
    start = rows.index(True)
    return range(start, rows.index(False, start) if False in rows[start:] else len(rows))


def narrowed(layout: Layout, zeros: range) -> Layout:
    """Return the layout of an adapter without some components."""
    return layout.with_rank(layout.rank - len(zeros)) if zeros else layout


def without(adapter: Adapter, zeros: range) -> Tensor:
    """Return the values without some components; without a copy if that is none."""
    small = narrowed(adapter.layout, zeros)
    flat = adapter.flat.new_empty(small.size) if zeros else adapter.flat
    for into, value in _parts(small, flat, adapter.layout, adapter.flat, zeros):
        into.copy_(value)
    return flat


def restored(flat: Tensor, layout: Layout, zeros: range) -> Adapter:
    """Return the adapter of this layout from its values without some components."""
    whole = flat.new_zeros(layout.size) if zeros else flat
    for value, into in _parts(narrowed(layout, zeros), flat, layout, whole, zeros):
        into.copy_(value)
    return Adapter(layout, whole)


def _parts(
    small: Layout, few: Tensor, layout: Layout, flat: Tensor, zeros: range
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same components of both, those before and those behind the zeros; none if none."""
    both = zip(small.views(few), layout.views(flat), strict=True) if zeros else ()
    for (entry, less), (_, more) in both:
        if (axis := entry.rank_axis) is None:
            yield less, more
        else:
            start, behind = zeros.start, layout.rank - zeros.stop
            yield less.narrow(axis, 0, start), more.narrow(axis, 0, start)
            yield less.narrow(axis, start, behind), more.narrow(axis, zeros.stop, behind)
