"""Blocks: an adapter cut into pieces small enough for a core's cache, each of whole rows.

A row is the part of one tensor that has one weight: an expert's, or all of a shared tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedmoe.adapter import BLOCK_VALUES, Layout, new_flat


@dataclass(frozen=True)
class Blocks:
    """Where to cut the flat buffers of a layout, and the two passes of a weighted mean over them.

    Weights are float64, one for each owner: each expert of each layer, then all shared parts.
    """

    sizes: list[int]
    """Values of each block."""
    heights: Int[Tensor, " blocks"]
    """Rows of each block."""
    owners: Int[Tensor, " rows"]
    """Each row's expert, `layer * num_experts + expert`; one past the last for shared parts."""

    @classmethod
    def of(cls, layout: Layout, block_values: int = BLOCK_VALUES) -> Blocks:
        """Cut a layout: as many rows to a block as fit; a row that does not fit is cut."""
        sizes, heights, owners = [], [], []
        for entry in layout.entries:
            num_rows = 1 if entry.layer is None else layout.num_experts
            layer = layout.num_layers if entry.layer is None else entry.layer
            width = (entry.stop - entry.start) // num_rows
            for row, height, size in _pieces(num_rows, width, block_values):
                first = layer * layout.num_experts + row
                sizes.append(size)
                heights.append(height)
                owners += range(first, first + height)
        return cls(sizes, *(torch.tensor(x, dtype=torch.int64) for x in (heights, owners)))

    def cut(self, flat: Tensor) -> list[Tensor]:
        """Return the blocks of a flat buffer, each (rows, values), without a copy."""
        pieces = zip(flat.split(self.sizes), self.heights.tolist(), strict=True)
        return [piece.view(height, -1) for piece, height in pieces]

    def weights(self, per_owner: Float[Tensor, " owners"]) -> list[Tensor | None]:
        """Return each block's weights, (rows, 1); None for a block in which all are zero."""
        if not self.sizes:
            return []
        rows = per_owner[self.owners]
        largest = torch.segment_reduce(rows, "max", lengths=self.heights).tolist()
        columns = rows.unsqueeze(1).split(self.heights.tolist())
        return [w if most else None for w, most in zip(columns, largest, strict=True)]

    def subtract(self, total: Tensor, deltas: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Take `weight * delta` of each delta, in their order, from the float64 `total`.

        Block by block, so that a block's sum stays in cache.
        """
        buffer = total.new_empty(max(self.sizes, default=0))
        per_block = zip(
            self.cut(total),
            zip(*map(self.cut, deltas), strict=True),
            zip(*map(self.weights, weights), strict=True),
            strict=True,
        )
        for into, parts, gammas in per_block:
            wide = buffer[: into.numel()].view_as(into)
            for part, gamma in zip(parts, gammas, strict=True):
                if gamma is not None:
                    into.addcmul_(wide.copy_(part), gamma, value=-1)

    def descended(self, flat: Tensor, total: Tensor, weight: Tensor) -> Tensor:
        """Return `flat - total / weight`, rounded once; `flat` itself where the weight is zero."""
        made = new_flat(flat)
        buffer = total.new_empty(max(self.sizes, default=0))
        cuts = map(self.cut, (made, flat, total))
        for new, old, summed, rows in zip(*cuts, self.weights(weight), strict=True):
            if rows is None:
                new.copy_(old)
                continue
            # Where one row's weight is zero its sum is zero too: no move.
            mean = torch.div(
                summed, rows.where(rows > 0, 1), out=buffer[: old.numel()].view_as(old)
            )
            new.copy_(torch.sub(old, mean, out=mean))
        return made


def _pieces(num_rows: int, width: int, block_values: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, rows, values) of the blocks of one tensor."""
    if width > block_values:
        for row in range(num_rows):
            for start in range(0, width, block_values):
                yield row, 1, min(block_values, width - start)
        return
    step = block_values // max(1, width)
    for row in range(0, num_rows, step):
        height = min(step, num_rows - row)
        yield row, height, height * width
