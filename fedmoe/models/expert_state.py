"""The state of a layer's experts apart from frozen weights: LoRA, a merged expert, settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from fedmoe.models.dropout import Dropout
from fedmoe.models.memory.stored import Stored

if TYPE_CHECKING:
    from fedmoe.models.shared_pass import SharedPass


class ExpertLoRA(NamedTuple):
    """LoRA factors of one layer's experts; `scale` is alpha / rank."""

    gate_up_A: Tensor  # (experts, rank, hidden)
    gate_up_B: Tensor  # (experts, 2 * width, rank)
    down_A: Tensor  # (experts, rank, width)
    down_B: Tensor  # (experts, hidden, rank)
    scale: float


class Biases(NamedTuple):
    """Frozen biases of a layer's experts."""

    gate_up: Tensor  # (experts, 2 * width)
    down: Tensor  # (experts, hidden)


class Stacks(NamedTuple):
    """Frozen weights of some experts in the module's layout; with `stored`, mere shapes."""

    gate_up: Tensor
    down: Tensor
    stored: tuple[Stored, Stored] | None
    biases: Biases | None


class Merged(NamedTuple):
    """One frozen expert in the place of several, in the module's layout."""

    gate_up: Tensor | Stored  # (1, ...)
    down: Tensor | Stored
    biases: Biases | None

    @property
    def stacks(self) -> Stacks:
        """The expert as a stack of one."""
        gate_up, down, biases = self
        if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
            return Stacks(gate_up, down, None, biases)
        shapes = (torch.empty(w.shape, device="meta") for w in (gate_up, down))
        return Stacks(*shapes, (gate_up, down), biases)  # pyright: ignore


class Pages(Protocol):
    """The pages of mapped weights; see `memory.paging`."""

    def chosen(self, experts: Sequence[int], top_k: int) -> None:
        """Prepare for the experts that the layer's tokens chose, k each."""


@dataclass(eq=False)
class ExpertState:
    """The state of an adapted experts module apart from its frozen weights."""

    lora: ExpertLoRA | None = None
    rescaler: Tensor | None = None
    """One factor on the layer's output, a scalar, or one for each client of a shared pass, in
    order; None leaves it alone."""
    shared: SharedPass | None = None
    """Whose each token is, where a pass has those of several clients."""
    valid: Tensor | None = None
    """bool (tokens,): False marks padding, which reaches no expert and is not counted."""
    counts: Tensor | None = None
    """int64 (experts,): routed tokens so far; None switches counting off."""
    drops: Dropout | None = None
    """Draws the masks on LoRA's inputs; None outside training, and without dropout."""
    without: Callable[[Tensor, Tensor], Tensor] | None = None
    """Returns, of a choice and its weights (tokens, top_k), the slots that have no gradient; see
    `AdaptedModel.narrowing`. None outside training, and where all have one."""
    recompute: bool = False
    """Compute activations again in backward instead of saving them."""
    fused: bool = False
    """Compute what they have a form for with Triton's kernels; see `fused`."""
    stored: tuple[Stored, Stored] | None = None
    """Another form of the two frozen weights, read in their place; see `memory.stored`."""
    pages: Pages | None = None
    """Reads what is chosen of mapped weights at once; without, the system reads what is touched."""
    left_out: Tensor | None = None
    """bool (experts + 1,): True for those that the client does not keep; see `subset`."""
    merged: Merged | None = None
    """The expert in their place; None where no token can choose them."""
    merged_count: Tensor | None = None
    """int64 (): the choices so far that went there; None switches counting off."""

    @property
    def factor(self) -> Tensor:
        """The rescaler, or each token's (tokens, 1)."""
        assert self.rescaler is not None
        return self.shared.of_tokens(self.rescaler) if self.shared else self.rescaler


def no_lora(gate_up: Tensor, down: Tensor, device: torch.device | None = None) -> ExpertLoRA:
    """Factors of rank 0 for weights (experts, 2 * width, hidden) and (experts, hidden, width)."""
    a1, a2 = (w.new_zeros(w.shape[0], 0, w.shape[2], device=device) for w in (gate_up, down))
    b1, b2 = (w.new_zeros(*w.shape[:2], 0, device=device) for w in (gate_up, down))
    return ExpertLoRA(a1, b1, a2, b2, 1.0)
