"""The checks at the server's door: what no honest client sends is refused.

Scalars and counts are checked before the values are decoded, because the counts say how many
values there must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedmoe.adapter import largest
from fedmoe.errors import WireError

LARGEST_DELTA = 1e4
"""A local change of one weight beyond this is damage, not learning."""
MOST_EXAMPLES = 2**40
MOST_PEAK_BYTES = 2**50
"""More memory than any client has."""


@dataclass(frozen=True)
class Limits:
    """What a run admits at most; the defaults are what no run exceeds."""

    examples: int = MOST_EXAMPLES
    """That a client may claim to hold: they weigh its update."""
    delta: float = LARGEST_DELTA
    """Of any value's change in one local round."""
    free: int = 0
    """Of how many of the last values it is not known: of them `LARGEST_DELTA` holds."""
    why: str = "beyond which it is damage, not learning"
    rescaler: float = LARGEST_DELTA
    """The same, of a learned factor."""
    per_token: Callable[[int], tuple[float, float]] | None = None
    """For a k the least and the most experts of a layer that a token reaches on average; None
    where it is k, neither less nor more."""
    stacks: tuple[int, ...] = ()
    """Sparse layers of each stack, in their order, where a token passes one stack of several, as in
    an encoder-decoder; () where all layers are one."""
    most_experts: int | None = None
    """Experts of a layer that tokens can have reached, where a client keeps a subset of them."""
    merges: bool = False
    """Whether one expert stands for those left out: an update then says how many choices it got,
    and they count towards k."""


LIMITS = Limits()


def check_scalars(
    scalars: Mapping[str, Any], task: Mapping[str, Any], limits: Limits = LIMITS
) -> None:
    """Refuse the scalars of an update to another task, or that are not believable."""
    for name, expected in task.items():
        if name == "top_k" and 1 <= scalars[name] < expected:
            continue  # memory ran out with more; see `budget.replan`
        if scalars[name] != expected:
            raise WireError(
                f"update for {name} {scalars[name]!r}; its task has {expected!r}", "task"
            )
    for name in ("loss_before", "loss_after", "seconds"):
        if not math.isfinite(scalars[name]):
            raise WireError(f"{name} is {scalars[name]}; expected a finite float", "scalars")
    if scalars["seconds"] < 0:
        raise WireError(f"seconds is {scalars['seconds']}; expected 0 or more", "scalars")
    work = "{examples} examples, {tokens} tokens, {steps} steps".format(**scalars)
    if min(scalars["examples"], scalars["tokens"], scalars["steps"]) < 1:
        raise WireError(f"{work}; expected 1 or more", "scalars")
    if scalars["steps"] > 2**40 or scalars["tokens"] > 2**50:
        raise WireError(f"{work} is not believable", "scalars")
    if scalars["examples"] > limits.examples:
        raise WireError(
            f"{scalars['examples']} examples; expected at most {limits.examples} "
            "(admission.most_examples)",
            "examples",
        )
    if not 0 <= scalars["peak_bytes"] <= MOST_PEAK_BYTES:
        raise WireError(
            f"peak_bytes is {scalars['peak_bytes']}; expected 0 to {MOST_PEAK_BYTES}", "scalars"
        )


def check_counts(
    counts: Int64[Tensor, "layers experts"],
    tokens: int,
    top_k: int,
    limits: Limits = LIMITS,
    merged: Int64[Tensor, " layers"] | None = None,
) -> None:
    """Refuse counts that `tokens` tokens, each to `top_k` experts of a layer, cannot give.

    `limits.per_token` says where a gating's tokens reach fewer, `limits.stacks` where a token
    passes a part of the layers. Where experts are merged, their choices, `merged`, make up what the
    counts lack, to the last one.
    """
    if (counts < 0).any():
        raise WireError(
            f"a count of {counts.min().item()} routed tokens; expected 0 or more", "counts"
        )
    # Also keeps the sums below from wrapping round to the right number.
    if (counts > tokens).any():
        raise WireError(
            f"a count of {counts.max().item()}; {tokens} tokens can reach an expert", "counts"
        )
    used = (counts > 0).sum(1)
    if limits.most_experts is not None and (used > limits.most_experts).any():
        raise WireError(
            f"{used.max().item()} experts of a layer have tokens; its client keeps "
            f"{limits.most_experts} (subset.keep)",
            "counts",
        )
    routed = counts.sum(1)
    if merged is not None:
        _check_merged(merged, tokens * min(top_k, counts.shape[1]))
        routed = routed + merged
    if limits.per_token is not None:
        least, most = limits.per_token(top_k)
        if (routed < tokens * least).any() or (routed > tokens * most).any():
            raise WireError(
                f"routed tokens per layer are {routed.tolist()}; expected {least:g} to {most:g} "
                f"experts for each of {tokens} tokens",
                "counts",
            )
    elif limits.stacks:
        _check_stacks(routed, tokens * top_k, limits.stacks)
    elif (routed != tokens * top_k).any():
        raise WireError(
            f"routed tokens per layer are {routed.tolist()}; expected tokens * top_k = "
            f"{tokens} * {top_k} in each",
            "counts",
        )


def _check_stacks(routed: Int64[Tensor, " layers"], expected: int, stacks: tuple[int, ...]) -> None:
    """Refuse sums that differ within a stack of layers, or do not add up over the stacks."""
    parts = routed.split(list(stacks))
    if any((part != part[0]).any() for part in parts) or sum(p[0] for p in parts) != expected:
        raise WireError(
            f"routed tokens per layer are {routed.tolist()}; expected the same within each stack "
            f"of {', '.join(map(str, stacks))} layers, and tokens * top_k = {expected} over all "
            "stacks",
            "counts",
        )


def _check_merged(merged: Int64[Tensor, " layers"], most: int) -> None:
    """Refuse choices of merged experts that no tokens can have made."""
    if (merged < 0).any() or (merged > most).any():
        raise WireError(
            f"choices of merged experts are {merged.tolist()}; expected 0 to {most} in each layer",
            "counts",
        )


def check_values(
    delta: Float[Tensor, " values"],
    rescaler: Float[Tensor, " layers"],
    sent: Float[Tensor, " layers"],
    learns_rescaler: bool = False,
    limits: Limits = LIMITS,
) -> None:
    """Refuse absurd values, and any rescaler but the one `sent` where it is not learned."""
    bounded = len(delta) - limits.free
    for values, most, why in (
        (delta[:bounded], limits.delta, limits.why),
        (delta[bounded:], LARGEST_DELTA, LIMITS.why),
    ):
        size = largest(values)
        if not math.isfinite(size):
            raise WireError(f"delta has a value of {size}; expected finite ones", "not_finite")
        if size > most:
            raise WireError(
                f"delta has a value of {size:g}; expected at most {most:g}, {why}", "too_large"
            )
    if not rescaler.isfinite().all():
        raise WireError(f"rescaler is {rescaler.tolist()}; expected finite", "not_finite")
    if not learns_rescaler and not torch.equal(rescaler, sent):
        raise WireError(
            f"rescaler is {rescaler.tolist()}; expected the task's {sent.tolist()}: this run does "
            "not learn it",
            "task",
        )
    if (moved := (rescaler - sent).abs().max().item()) > limits.rescaler:
        raise WireError(
            f"rescaler moved by {moved:g}; expected at most {limits.rescaler:g}, {limits.why}",
            "too_large",
        )
