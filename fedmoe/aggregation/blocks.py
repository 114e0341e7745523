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
        """Return the blocks of a flat buffer, (rows, values) or of one row (values,), as views."""
        pieces = zip(flat.split(self.sizes), self.heights.tolist(), strict=True)
        return [piece if height == 1 else piece.view(height, -1) for piece, height in pieces]

    def weights(self, per_owner: Float[Tensor, " owners"]) -> list[float | Tensor]:
        """Return each block's weights: one number, or (rows, 1); 0.0 where all are zero."""
        rows = per_owner[self.owners]
        columns = zip(rows.split(heights := self.heights.tolist()), heights, strict=True)
        numbers, start, found = rows.tolist(), 0, []
        for column, height in columns:
            mine, start = numbers[start : start + height], start + height
            found.append(mine[0] if height == 1 else column.unsqueeze(1) if any(mine) else 0.0)
        return found

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
                if isinstance(gamma, Tensor):
                    into.addcmul_(wide.copy_(part), gamma, value=-1)
                elif gamma:  # faster by a tenth, and large experts are alone in their blocks
                    into.add_(wide.copy_(part), alpha=-gamma)

    def descended(self, flat: Tensor, total: Tensor, per_owner: Tensor) -> Tensor:
        """Return `flat - total / weight`, rounded once; `flat` itself where the weight is zero."""
        made = new_flat(flat)
        buffer = total.new_empty(max(self.sizes, default=0))
        # Where one's weight is zero its sum is zero too: no move.
        rows = per_owner.where(per_owner > 0, 1)[self.owners].split(self.heights.tolist())
        for new, old, summed, weight in zip(*map(self.cut, (made, flat, total)), rows, strict=True):
            wide = buffer[: old.numel()].view_as(old)
            column = weight if len(weight) == 1 else weight.unsqueeze(1)
            new.copy_(wide.copy_(old).addcdiv_(summed, column, value=-1))
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
