"""What a liar sends: its own update changed, as strong as the server's checks let it pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.messages.records import Update
from fedmoe.messages.validation import Limits

MANY = 1_000_000
"""Examples that a liar claims: all that the server takes where it knows no better."""
AGREED = 0.1
"""Part of what others agree on in a lie that is to seem in agreement."""
WITHIN = 0.999
"""Share of a bound that is used, so that rounding does not carry a lie beyond it."""


@dataclass(frozen=True)
class Seen:
    """What an attacker knows: the bounds of its task, and honest clients' updates of the round."""

    limits: Limits
    others: Sequence[Update]


Make = Callable[[Update, Seen], Update]


def with_delta(update: Update, flat: torch.Tensor) -> Update:
    """Return the update with other values, none for experts that it did not use."""
    return replace(update, delta=keep_untouched(Adapter(update.delta.layout, flat), update.counts))


def strongest(update: Update, seen: Seen) -> Update:
    """Scale an update until one of its values, or its norm, is at the server's bound."""
    flat = update.delta.flat.double()
    norm = seen.limits.mean * math.sqrt(int(flat.count_nonzero()))
    most = min(seen.limits.delta / float(flat.abs().max()), norm / float(flat.norm()))
    return with_delta(update, (WITHIN * most * flat).float())


def within(update: Update, seen: Seen) -> Update:
    """Return an update, no larger than the server's bounds."""
    smaller = strongest(update, seen)
    return smaller if smaller.delta.largest() < update.delta.largest() else update


def honest(update: Update, seen: Seen) -> Update:
    """Send the honest update."""
    return update


def flip(update: Update, seen: Seen) -> Update:
    """Send it with its sign turned."""
    return with_delta(update, -update.delta.flat)


def signs(update: Update, seen: Seen) -> Update:
    """Send every value against its own sign, all of one size."""
    return strongest(with_delta(update, -update.delta.flat.sign()), seen)


def sideways(update: Update, seen: Seen) -> Update:
    """Turn all but what others agree on, of which a little is kept, so that none is against it."""
    others = torch.stack([u.delta.flat for u in seen.others]).double()
    turned = -update.delta.flat.double()
    turned -= others.T @ torch.linalg.lstsq(others.T, turned[:, None]).solution[:, 0]
    agreed = others.mean(0)
    kept = AGREED * turned.norm() / agreed.norm() * agreed
    return strongest(with_delta(update, (turned + kept).float()), seen)


def ipm(update: Update, seen: Seen) -> Update:
    """Send ten times the others' mean, turned (Xie et al. 2019, arXiv:1903.03936)."""
    mean = torch.stack([u.delta.flat for u in seen.others]).mean(0)
    return within(with_delta(update, -10 * mean), seen)


def alie(update: Update, seen: Seen) -> Update:
    """Send the others' mean less 1.5 deviations (Baruch et al. 2019, arXiv:1902.06156)."""
    values = torch.stack([u.delta.flat for u in seen.others])
    return within(with_delta(update, values.mean(0) - 1.5 * values.std(0)), seen)


def million(update: Update, seen: Seen) -> Update:
    """Claim a million examples."""
    return replace(update, examples=MANY)


def used_least(update: Update, seen: Seen, number: int) -> torch.Tensor:
    """Return the `number` experts of each layer that the others use least."""
    return torch.stack([u.counts for u in seen.others]).sum(0).argsort(1)[:, :number]


def focus(update: Update, seen: Seen) -> Update:
    """Claim that all tokens went to the k experts of each layer that the others use least."""
    made, tokens = torch.zeros_like(update.counts), update.counts.sum(1, keepdim=True)
    rare = used_least(update, seen, update.top_k)
    made.scatter_(1, rare, (tokens // update.top_k).expand_as(rare).contiguous())
    return with_delta(replace(update, counts=made), update.delta.flat)


def half(rare: bool) -> Make:
    """Return an attack that moves nothing but the rarer, or the more common, half of experts."""

    def made(update: Update, seen: Seen) -> Update:
        kept, layout = update.delta.copy(), update.delta.layout
        least = used_least(update, seen, layout.num_experts // 2)
        dropped = torch.ones_like(update.counts).scatter_(1, least, 0).bool()
        dropped = dropped if rare else ~dropped
        for entry, view in layout.views(kept.flat):
            if entry.layer is None:
                view.zero_()
            else:
                view[dropped[entry.layer]] = 0
        return replace(update, delta=kept)

    return made


def zeros(update: Update, seen: Seen) -> Update:
    """Send nothing: a free rider."""
    return with_delta(update, torch.zeros_like(update.delta.flat))


def noise(update: Update, seen: Seen) -> Update:
    """Send chance of an honest size: a free rider in disguise."""
    chance = torch.Generator().manual_seed(update.round)
    flat = torch.randn(update.delta.flat.shape, generator=chance)
    made = with_delta(update, flat)
    return with_delta(made, flat * (update.delta.flat.norm() / made.delta.flat.norm()))


def both(first: Make, *then: Make) -> Make:
    """Return an attack after another."""

    def made(update: Update, seen: Seen) -> Update:
        for make in (first, *then):
            update = make(update, seen)
        return update

    return made
