"""Frozen weights of a layer's experts in other forms than one tensor in the model's memory.

A form makes the weights of one expert, or of a few, for a product, and drops them after it; the
stored data are smaller, or in another place:

- `Elsewhere`: in full, in main memory beside a GPU, or in a file that is mapped into memory;
- `Quantised`: as whole numbers of 8 or 4 bits, which may themselves be elsewhere;
- `Narrowed`: those of some experts, brought here from elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from fedmoe.errors import ModelError

Frozen = Literal["full", "int8", "int4"]
"""The form of frozen experts: the model's own type, or 8 or 4 bits with scales."""
BITS: dict[Frozen, int] = {"int8": 8, "int4": 4}
GROUP = 64
"""Neighbouring values that share a scale in 4 bits; in 8 bits a whole row does."""
SMALLEST_GROUP = 8
"""The smallest group: with a smaller one the scales would take more than the 4 bits save."""


@dataclass(frozen=True, eq=False)
class Stored(ABC):
    """Weights (experts, out, in) whose `stored[e]` and `stored[i:j]` are tensors on `device`."""

    device: torch.device
    """The device that computes products."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(experts, out, in)."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of the stored data, wherever they are."""

    @property
    def is_elsewhere(self) -> bool:
        """True where the stored data are not on `device`."""
        return False

    @abstractmethod
    def __getitem__(self, experts: int | slice) -> Tensor:
        """Return the weights of one expert (out, in), or of a range of them."""

    @abstractmethod
    def placed(self, place: Callable[[Tensor], Tensor]) -> Self:
        """Return the same form with its stored data moved by `place`."""

    @property
    def mT(self) -> Transposed:
        """The weights as (experts, in, out)."""
        return Transposed(self)

    def narrowed(self, kept: Tensor) -> Narrowed:
        """Return the weights of the experts that `kept`, bool (experts,), marks, on `device`."""
        where = kept.nonzero().flatten()
        return Narrowed(
            self.device,
            self.placed(lambda w: w[where.to(w.device)].to(self.device)),
            tuple(where.tolist()),
            self.shape,
        )


@dataclass(frozen=True, eq=False)
class Narrowed(Stored):
    """Some experts' weights under their own numbers; the others are zeros that nothing reads."""

    stored: Stored  # (experts kept, out, in)
    where: tuple[int, ...]
    """The numbers of the experts kept, in order."""
    whole: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole

    @property
    def num_bytes(self) -> int:
        return self.stored.num_bytes

    def __getitem__(self, experts: int | slice) -> Tensor:
        if isinstance(experts, int):
            return self.stored[self.where.index(experts)]
        wanted = range(*experts.indices(self.whole[0]))
        here = [i for i, e in enumerate(self.where) if e in wanted]
        some = self.stored[here[0] : here[-1] + 1] if here else self.stored[0:0]
        out = some.new_zeros(len(wanted), *some.shape[1:])
        out[[wanted.index(self.where[i]) for i in here]] = some
        return out

    def placed(self, place: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, stored=self.stored.placed(place))


@dataclass(frozen=True, eq=False)
class Transposed:
    """The transpose of stored weights, which forward products read."""

    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """(experts, in, out)."""
        experts, out, into = self.stored.shape
        return experts, into, out

    @property
    def mT(self) -> Stored:
        """The weights as they are stored."""
        return self.stored

    def __getitem__(self, experts: int | slice) -> Tensor:
        return self.stored[experts].mT


@dataclass(frozen=True, eq=False)
class Elsewhere(Stored):
    """Weights in full that are brought to `device` when they are needed."""

    weights: Tensor  # (experts, out, in)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weights.shape)

    @property
    def num_bytes(self) -> int:
        return self.weights.nbytes

    @property
    def is_elsewhere(self) -> bool:
        return True

    def __getitem__(self, experts: int | slice) -> Tensor:
        return self.weights[experts].to(self.device, non_blocking=True)

    def placed(self, place: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, weights=place(self.weights))


@dataclass(frozen=True, eq=False)
class Quantised(Stored):
    r"""Weights as whole numbers with scales, symmetric about zero.

    $$s = \max_i |w_i| / m, \qquad q_i = \mathrm{round}(w_i / s), \qquad \hat w_i = s\,q_i$$

    over the values of a row in 8 bits (m = 127), of a group of `GROUP` in 4 (m = 7). A scale is
    rounded to the weights' type before the q are taken, so that rounding it costs nothing:
    $|\hat w_i - w_i| \le s / 2$ but for that type's own rounding of the product.

    Source: absolute-maximum quantisation, per row as in LLM.int8 (Dettmers et al. 2022,
    arXiv:2208.07339, sec. 2), in groups as in QLoRA's blocks (arXiv:2305.14314, sec. 2); without
    the first's outlier columns and the second's NF4 levels and quantised scales.
    """

    codes: Tensor  # int8 (experts, out, in), or uint8 (experts, out, in / 2)
    scales: Tensor  # (experts, out, groups), in the type of the weights

    @property
    def bits(self) -> int:
        """Bits of one value."""
        return 8 if self.codes.dtype == torch.int8 else 4

    @property
    def shape(self) -> tuple[int, ...]:
        experts, out, width = self.codes.shape
        return experts, out, width * 8 // self.bits

    @property
    def num_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def is_elsewhere(self) -> bool:
        return self.codes.device != self.device

    def __getitem__(self, experts: int | slice) -> Tensor:
        codes, scales = (
            part[experts].to(self.device, non_blocking=True) for part in (self.codes, self.scales)
        )
        whole = codes.to(scales.dtype) if self.bits == 8 else _unpacked(codes, scales.dtype)
        whole.unflatten(-1, (scales.shape[-1], -1)).mul_(scales.unsqueeze(-1))
        return whole

    def placed(self, place: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, codes=place(self.codes), scales=place(self.scales))


@torch.no_grad()
def quantised(weights: Tensor, frozen: Frozen) -> Quantised:
    """Quantise weights (experts, out, in) to 8 or 4 bits, expert by expert, on their device.

    Raises:
        ModelError: rows are of a length that 4 bits cannot group.
    """
    bits, group = BITS[frozen], group_of(weights.shape[-1], frozen)
    experts, out, row = weights.shape
    codes = weights.new_empty(
        (experts, out, row * bits // 8), dtype=torch.int8 if bits == 8 else torch.uint8
    )
    scales = weights.new_empty((experts, out, row // group))
    for e in range(experts):  # into one block: pieces would leave holes in the process's memory
        codes[e], scales[e] = _coded(weights[e], bits, group)
    return Quantised(weights.device, codes, scales)


def can_quantise(rows: tuple[int, ...], frozen: Frozen) -> bool:
    """Return whether rows of these lengths can be stored in this form."""
    return frozen != "int4" or all(math.gcd(row, GROUP) >= SMALLEST_GROUP for row in rows)


def group_of(row: int, frozen: Frozen) -> int:
    """Return how many values of a row of this length share a scale.

    Raises:
        ModelError: 4 bits cannot group such a row.
    """
    if frozen != "int4":
        return row
    if not can_quantise((row,), frozen):
        raise ModelError(
            f"frozen: 'int4' needs experts whose rows are a multiple of {SMALLEST_GROUP} values; "
            f"this model has rows of {row}; use 'int8'"
        )
    return math.gcd(row, GROUP)


def stored_bytes(rows: int, row: int, frozen: Frozen, element_bytes: int) -> int:
    """Return the bytes of `rows` rows of `row` values, scales included."""
    if frozen == "full":
        return rows * row * element_bytes
    return rows * (row * BITS[frozen] // 8 + row // group_of(row, frozen) * element_bytes)


def _coded(weights: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Return codes and scales of one expert's (out, in)."""
    largest = 2 ** (bits - 1) - 1
    values = weights.float().unflatten(-1, (-1, group))
    scales = (values.abs().amax(-1) / largest).to(weights.dtype)
    by = scales.float().unsqueeze(-1)
    whole = (values / by.where(by > 0, 1)).round_().clamp_(-largest, largest).flatten(-2)
    if bits == 8:
        return whole.to(torch.int8), scales
    low, high = (whole + 8).to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4), scales


def _unpacked(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Return whole numbers from -7 to 7: low bits are a row's first half, high bits its second."""
    half = codes.shape[-1]
    whole = torch.empty(*codes.shape[:-1], 2 * half, dtype=dtype, device=codes.device)
    whole[..., :half] = codes & 15
    whole[..., half:] = codes >> 4
    return whole.sub_(8)
