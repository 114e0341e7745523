"""The checks of a server on what arrives: it refuses what no honest client sends.

Scalars and counts are checked before the values are decoded, because the counts say how many
values there must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fedmoe.adapter import BLOCK_VALUES, largest
from fedmoe.errors import WireError
from fedmoe.messages.records import CLIENT_FIELDS, METRIC_NAME, MOST_METRIC, MOST_METRICS
from fedmoe.messages.rows import RowCounts

LARGEST_DELTA = 1e4
"""A local change of one weight beyond this is damage, not learning."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the updates of a run; no run exceeds the defaults."""

    examples: int = 2**40
    """Examples that a client may claim: they weigh its update."""
    held: str = "(admission.most_examples)"
    """Reason for the bound on `examples`, for messages."""
    steps: int | None = None
    """Steps of a client that claims as many examples as this one; None if any number will do."""
    tokens: float = math.inf
    """Tokens that pass in so many steps."""
    delta: float = LARGEST_DELTA
    """Change of any value in one local round."""
    mean: float = math.inf
    """Root mean square of the changes of all values that changed: it bounds the update's norm."""
    free: int = 0
    """Number of trailing values without a known bound; `LARGEST_DELTA` applies to them."""
    why: str = "beyond which it is damage, not learning"
    """Reason for the bound on `delta`, for messages."""
    rescaler: float = LARGEST_DELTA
    """Change of a learned factor."""
    per_token: Callable[[int], tuple[float, float]] | None = None
    """For a k, the least and the most experts of a layer that a token reaches on average; None if
    it is exactly k."""
    stacks: tuple[int, ...] = ()
    """Sparse layers of each stack, in order, if a token passes only one of several stacks, as in
    an encoder-decoder; () if a token passes all layers."""
    most_experts: int | None = None
    """Experts of a layer that tokens can have reached, if a client keeps a subset of them."""
    merges: bool = False
    """True if one expert stands for those left out: an update then counts the choices it got, and
    they are part of the k."""


LIMITS = Limits()


def check_scalars(
    scalars: Mapping[str, Any], task: Mapping[str, Any], limits: Limits = LIMITS
) -> None:
    """Refuse the scalars of an update that answers another task or that are out of bounds."""
    for name, expected in task.items():
        if name == "top_k" and 1 <= scalars[name] < expected:
            continue  # it ran out of memory with more; see `budget.replan`
        if scalars[name] != expected:
            raise WireError(
                f"update for {name} {scalars[name]!r:.80}; its task has {expected!r}", "task"
            )
    for field in CLIENT_FIELDS:
        value = scalars[field.name]
        if not field.least <= value <= field.most:
            bounds = f"{field.least:.16g} to {field.most:.16g}"
            raise WireError(f"{field.name} is {value}; expected {bounds}", "scalars")
    if scalars["examples"] > limits.examples:
        raise WireError(
            f"{scalars['examples']} examples; expected at most {limits.examples} {limits.held}",
            "examples",
        )
    if limits.steps is not None and scalars["steps"] != limits.steps:
        raise WireError(
            f"{scalars['steps']} steps; expected {limits.steps} for {scalars['examples']} examples "
            "(training.steps, training.epochs)",
            "scalars",
        )
    if scalars["tokens"] > limits.tokens:
        raise WireError(
            f"{scalars['tokens']} tokens; expected at most {limits.tokens:g}, as many as "
            f"{scalars['steps']} steps of whole batches have (text.max_length)",
            "scalars",
        )


def check_metrics(metrics: Any) -> dict[str, float]:
    """Return an update's own metrics; refuse too many, ill-named ones, and all but finite numbers.

    >>> check_metrics({"gradient_norm": 1})
    {'gradient_norm': 1.0}
    """
    if not isinstance(metrics, dict) or len(metrics) > MOST_METRICS:
        found = len(metrics) if isinstance(metrics, dict) else type(metrics).__name__
        raise WireError(f"metrics are {found}; expected at most {MOST_METRICS} by name", "scalars")
    for name, value in metrics.items():
        if not METRIC_NAME.fullmatch(name):
            raise WireError(
                f"a metric is called {name!r:.60}; expected a letter, then up to 39 letters, "
                "digits, `_`, `.` or `-`",
                "scalars",
            )
        number = type(value) is float or (type(value) is int and abs(value) < 2**53)
        if not (number and abs(value) <= MOST_METRIC):
            raise WireError(
                f"metric {name} is {value!r:.60}; expected a number up to {MOST_METRIC:g} in size",
                "scalars",
            )
    return {name: float(value) for name, value in metrics.items()}


def check_rows(rows: Any, examples: int) -> RowCounts | None:
    """Return an update's account of rows, if it has one; refuse one that does not add up."""
    if rows is None:
        return None
    if (counts := RowCounts.checked(rows)).train > examples:
        raise WireError(
            f"rows.train is {counts.train}, examples {examples}; expected as many at least",
            "scalars",
        )
    return counts


def check_zeros(zeros: Any, rank: int) -> range:
    """Return the rank components that a task leaves out; refuse what is no run of some."""
    if zeros is None:
        return range(0)
    numbers = isinstance(zeros, list) and [type(x) for x in zeros] == [int, int]
    if not numbers or not 0 <= zeros[0] < zeros[1] <= rank:
        raise WireError(
            f"zeros is {zeros!r:.80}; expected the first and the end of some of {rank} components",
            "scalars",
        )
    return range(*zeros)


def check_counts(
    counts: Int64[Tensor, "layers experts"],
    tokens: int,
    top_k: int,
    limits: Limits = LIMITS,
    merged: Int64[Tensor, " layers"] | None = None,
) -> None:
    """Refuse counts that `tokens` tokens, each to `top_k` experts of a layer, cannot give.

    `limits.per_token` allows for a gating whose tokens reach fewer experts, `limits.stacks` for
    tokens that pass only some layers. The choices of merged experts, `merged`, must make up exactly
    what the counts lack.
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
    """Refuse sums that differ within a stack of layers or do not add up over the stacks."""
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
    size: float | None = None,
) -> None:
    """Refuse absurd values, and a rescaler that differs from the one `sent` if none is learned.

    `size` is that of the largest, if it is known already.
    """
    bounded = len(delta) - limits.free
    if size is None or limits.free:
        size = largest(delta[:bounded])
    sizes = [size, largest(delta[bounded:])]
    bounds = (limits.delta, limits.why), (LARGEST_DELTA, LIMITS.why)
    for size, (most, why) in zip(sizes, bounds, strict=True):
        if not math.isfinite(size):
            raise WireError(f"delta has a value of {size}; expected finite ones", "not_finite")
        if size > most:
            raise WireError(
                f"delta has a value of {size:g}; expected at most {most:g}, {why}", "too_large"
            )
    _check_norm(delta[:bounded], sizes[0], limits)
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


def _check_norm(values: Float[Tensor, " values"], size: float, limits: Limits) -> None:
    """Refuse values that are each within bounds and together more than training moves."""
    if size <= limits.mean:
        return  # no mean of squares is above the largest
    squares, moved = 0.0, 0
    for block in values.split(BLOCK_VALUES):
        squares += torch.dot(block, block).item()  # in float32: the bound leaves a tenth for it
        moved += np.count_nonzero(block.numpy() != 0)
    norm = math.sqrt(squares)
    if norm > (most := limits.mean * math.sqrt(moved)):
        raise WireError(
            f"delta has a norm of {norm:g} over {moved} values; expected at most {most:g}, "
            f"{limits.why}",
            "too_large",
        )
