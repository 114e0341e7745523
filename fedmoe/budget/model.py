"""Memory and seconds of a training step, predicted from numbers of the model: pure functions.

What arithmetic cannot know (what libraries keep, how fast a processor really is) is in `Constants`,
which `calibrate` fits to a few measured steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedmoe.budget.shape import num_held

if TYPE_CHECKING:
    from fedmoe.budget.shape import Setting, Shape
    from fedmoe.models.memory.stored import Frozen

FLOAT = 4
"""Bytes of a float32: adapter, norms, router probabilities and losses, whatever the weights are."""
OPTIMISER_COPIES = 4
"""The adapter, its gradient and AdamW's two moments."""
PASS_COPIES = 6
"""The same of a client in a pass of several, whose model has each adapter and gradient again."""
LOGIT_COPIES = 3
"""Log-probabilities and two gradients: the most that exists of the logits at one time."""
LOGIT_VALUES = 2**24
"""Logits that exist at one time, at most; see `training.loss`."""
BLOCK_ROWS = 1024
"""Rows of experts in work at one time on a processor; see `models.routed`."""


@dataclass(frozen=True)
class Constants:
    """The additions of a machine to arithmetic; the defaults add next to nothing."""

    fixed_bytes: float = 0.0
    """Taken by any step: library buffers, the allocator's reserve."""
    slack: float = 0.0
    """Hidden-sized tensors per token and layer that the allocator holds beside those in use: what
    was freed in between, and is too scattered to be used again."""
    seconds_per_flop: float = 1e-12
    seconds_per_step: float = 0.0
    """Seconds of any micro-batch, however small: calls, and reading weights."""
    seconds_per_offloaded_byte: float = 0.0
    """Seconds to fetch offloaded weights; 0 if they come as fast as those in memory."""
    seconds_per_restored: Mapping[Frozen, float] = field(default_factory=dict)
    """To make one frozen value from its code, by form."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step at its peak, by what holds them."""

    weights: float
    """Frozen, as they are kept on the device; those offloaded are not."""
    optimiser: float
    """Adapter, gradient and moments."""
    saved: float
    """Activations that backward needs."""
    working: float
    """Bytes of the logits, or of the layer at work: the larger, as they do not exist together."""
    slack: float
    """Held by the allocator beside all that."""
    fixed: float

    @property
    def above_weights(self) -> float:
        """All but the frozen weights."""
        return self.optimiser + self.saved + self.working + self.slack + self.fixed

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.above_weights


def memory(shape: Shape, setting: Setting, constants: Constants) -> Memory:
    r"""The memory of a step at its peak, which is when backward begins.

    $$M = W + 4 \cdot 4 a + T L\,(s(k) + c\,e H) + \max(12 \min(n V, 2^{24}),\ l(k)) + f$$

    `W` frozen weights in the form they are kept in, whatever k is: with many tokens even k = 1
    reaches every expert, or all of a subset; `a` values of the adapter in float32, with gradient
    and two moments; `s` saved bytes per token and layer, `T` tokens, `L` layers; `e` bytes of an
    activation, `H` hidden; `n` response tokens, `V` vocabulary; `l` what one layer works with; `c`
    and `f` from `constants`. Of clients in a pass each has its `T`, its `n`, and `a` six times.
    That the slack goes by tokens and not by k was measured (glibc; 12 to 13 in two models).

    Derived from this package's layers and transformers' decoder layer (norms in float32,
    scaled dot-product attention that keeps no scores); no published formula.
    """
    values = setting.all_targets * shape.vocabulary
    logits = FLOAT * LOGIT_COPIES * min(values, setting.clients * LOGIT_VALUES)
    copies = PASS_COPIES * setting.clients if setting.clients > 1 else OPTIMISER_COPIES
    return Memory(
        weights=kept_bytes(shape, setting),
        optimiser=FLOAT * copies * shape.adapter,
        saved=saved_bytes(shape, setting),
        working=max(logits, _layer_bytes(shape, setting), _outside_working(shape, setting)),
        slack=constants.slack * hidden_bytes(shape, setting),
        fixed=constants.fixed_bytes,
    )


def kept_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes of frozen weights that stay on the device; experts in the form of the setting."""
    dense = shape.weight_bytes - shape.experts_bytes("full")
    return dense + (0 if setting.offload else shape.experts_bytes(setting.frozen, setting.subset))


def _restored_bytes(shape: Shape, setting: Setting) -> float:
    """Weights that exist for one product alone: of two experts, or on a GPU of a whole layer."""
    elsewhere = setting.offload or setting.subset is not None
    if setting.frozen == "full" and not (elsewhere and shape.on_gpu):
        return 0
    experts = shape.num_experts if shape.on_gpu else 2
    return experts * shape.up * shape.hidden * shape.element_bytes


def hidden_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes of one hidden-sized tensor in every layer."""
    return shape.num_layers * setting.tokens * shape.hidden * shape.element_bytes


def saved_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes that all layers keep for backward, the logits apart.

    Experts are counted here; what is around them, where it is not a plain decoder layer's, is what
    a dry run of the model told (`models.saved`).
    """
    kept = setting.tokens * shape.num_layers * _experts_per_token(shape, setting)
    kept += _outside_bytes(shape, setting)
    if setting.clients > 1:  # whose packed rows have attention's output in two orders
        kept += setting.tokens * shape.num_layers * shape.query * shape.element_bytes
    if shape.element_bytes != FLOAT:
        # The factors once more, in the weights' type.
        kept += setting.clients * shape.adapter * shape.element_bytes
    return kept


def _outside_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes that are kept outside the experts.

    Where attention is not adapted nothing before the first experts is trained, and so not kept.
    (Else the last norm's input is kept, and the first norm's is not: the count is the same.)
    """
    if shape.saved is not None:
        lora = shape.element_bytes * shape.num_linears * shape.rank * setting.tokens
        return shape.saved.of(setting.tokens, setting.length) + lora
    kept = shape.num_layers * _dense_per_token(shape)
    if not shape.adapts_attention:
        kept += FLOAT * shape.hidden - _dense_per_token(shape)  # the last norm's; the first layer's
    return setting.tokens * kept


def _outside_working(shape: Shape, setting: Setting) -> float:
    """Return a layer's working memory outside its experts, if a dry run measured it."""
    return (
        shape.saved.outside_bytes(setting.tokens, setting.length)
        if shape.saved is not None
        else 0.0
    )


def _dense_per_token(shape: Shape) -> float:
    """Bytes that one layer keeps of one token for its norms, its attention and its router."""
    s, e = shape, shape.element_bytes
    norms = FLOAT * (2 * s.hidden + (s.query + s.key if s.norms_queries else 0))
    attention = e * (2 * s.query + 2 * s.key)
    lora = e * (s.hidden + 4 * s.rank) if s.adapts_attention else 0
    return norms + attention + lora + FLOAT * s.num_experts


def _experts_per_token(shape: Shape, setting: Setting) -> float:
    """The same for its experts: their input, three indices and a weight a choice, and products."""
    e, k = shape.element_bytes, setting.top_k
    products = 0 if setting.recompute else e * k * (shape.up + 2 * shape.rank)
    inputs = k + 1 if shape.weighs_input else 1
    router = 28 if shape.saved is None else 16  # of which a dry run has an index and the weight
    return e * inputs * shape.hidden + router * k + products


def _layer_bytes(shape: Shape, setting: Setting) -> float:
    """Return the working memory of a sparse layer's backward: rows and factors' gradients."""
    s, e = shape, shape.element_bytes
    rows = setting.tokens * setting.top_k
    rows = rows if s.on_gpu else min(rows, BLOCK_ROWS)
    factors = setting.clients * s.expert_lora * s.num_experts // s.num_layers
    return (
        e * rows * (4 * s.hidden + 3 * s.up + 2 * s.width)
        + 6 * e * setting.tokens * s.hidden
        + factors * (e + (FLOAT if e != FLOAT else 0))
        + _restored_bytes(shape, setting)
    )


def forward_flops(shape: Shape, setting: Setting) -> float:
    """FLOPs of a forward pass: 2 m n for a token that meets a (m, n) weight, and attention."""
    return _flops(shape, setting, frozen=1, lora=1, attention=2)


def step_flops(shape: Shape, setting: Setting) -> float:
    """FLOPs of a micro-batch, forward and backward.

    Frozen weights have no gradient: two passes through them, three through LoRA, and one less
    through what reads the first layer's input; attention's
    scores take two products forward and five back, half of them under a causal mask. Recomputing
    repeats the first of the experts' two products, two thirds of their work where they are gated.
    """
    flops = _flops(shape, setting, frozen=2, lora=3, attention=7)
    flops -= 2 * setting.tokens * shape.first
    if setting.recompute:
        once = 2 * setting.tokens * setting.top_k * (shape.expert + shape.expert_lora)
        flops += once * shape.first_share
    return flops


def values_read(shape: Shape, setting: Setting) -> float:
    """Frozen values of experts that a micro-batch reads, forward and backward.

    Of `n` choices spread evenly, `E (1 - (1 - 1/E)^n)` experts are reached in a layer that has E,
    or that many of a subset.
    """
    passes = 2 + (shape.first_share if setting.recompute else 0)
    there = num_held(shape.num_experts, setting.subset)
    missed = (1 - 1 / there) ** (setting.tokens * setting.top_k)
    return passes * shape.expert * there * (1 - missed)


def _flops(shape: Shape, setting: Setting, *, frozen: int, lora: int, attention: int) -> float:
    s, tokens = shape, setting.tokens
    met = frozen * (s.dense + setting.top_k * s.expert)
    met += lora * (s.dense_lora + setting.top_k * s.expert_lora)
    head = frozen * s.head * setting.all_targets
    scores = attention * s.num_layers * s.query * tokens * setting.length / 2
    return 2.0 * (tokens * met + head + scores)


def step_seconds(shape: Shape, setting: Setting, constants: Constants) -> float:
    """Seconds of one micro-batch, forward and backward."""
    read = values_read(shape, setting)
    seconds = constants.seconds_per_step + constants.seconds_per_flop * step_flops(shape, setting)
    seconds += constants.seconds_per_restored.get(setting.frozen, 0.0) * read
    if setting.offload:
        size = shape.experts_bytes(setting.frozen) / (shape.expert * shape.num_experts)  # a value's
        seconds += constants.seconds_per_offloaded_byte * size * read
    return seconds
