"""The attacks by name: what a liar trains on, and what it then sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulations.attacks import lies
from simulations.attacks.lies import Make, both, half, honest, strongest

Rows = Literal["own", "labels", "trigger"]
"""What a liar trains on: its rows, these with answers exchanged, or also with a trigger."""


@dataclass(frozen=True)
class Attack:
    """A lie, its text for the page, and the rows that its liar trains on."""

    says: str
    make: Make | None = honest
    """None: it sends no update."""
    rows: Rows = "own"
    own: bool = False
    """Whether clients hold rows of their own, of which the server knows no number."""


TURNED = both(lies.flip, strongest)
ATTACKS: dict[str, Attack] = {
    "honest": Attack("nobody lies"),
    "flip": Attack("turned", lies.flip),
    "bound": Attack("turned, to the bound", TURNED),
    "signs": Attack("every value against its sign, to the bound", lies.signs),
    "sideways": Attack("turned but for a little agreement, to the bound", lies.sideways),
    "alie": Attack("ALIE, 1.5 deviations", lies.alie),
    "ipm": Attack("IPM, 10 times the mean", lies.ipm),
    "labels": Attack("answers exchanged", rows="labels"),
    "labels_bound": Attack("answers exchanged, to the bound", strongest, "labels"),
    "backdoor": Attack("backdoor", rows="trigger"),
    "backdoor_bound": Attack("backdoor, to the bound", strongest, "trigger"),
    "backdoor_common": Attack(
        "backdoor in common experts, to the bound", both(half(rare=False), strongest), "trigger"
    ),
    "backdoor_rare": Attack(
        "backdoor in rare experts, to the bound", both(half(rare=True), strongest), "trigger"
    ),
    "focus": Attack("turned, counts on k rare experts", both(lies.flip, lies.focus)),
    "focus_bound": Attack(
        "turned, counts on k rare experts, to the bound", both(lies.flip, lies.focus, strongest)
    ),
    "backdoor_focus": Attack(
        "backdoor, counts on k rare experts, to the bound", both(lies.focus, strongest), "trigger"
    ),
    "million": Attack("turned, claims a million examples", both(lies.flip, lies.million)),
    "absent": Attack("the client is not there", None),
    "zeros": Attack("free rider: zeros", lies.zeros),
    "noise": Attack("free rider: noise", lies.noise),
    "own_million": Attack(
        "turned, a million as first claim", both(lies.flip, lies.million), own=True
    ),
    "own_bound": Attack(
        "turned, to the bound, a million as first claim", both(TURNED, lies.million), own=True
    ),
    "own_sideways": Attack(
        "turned but for a little agreement, to the bound, a million as first claim",
        both(lies.sideways, lies.million),
        own=True,
    ),
    "own_backdoor": Attack("backdoor, a million as first claim", lies.million, "trigger", own=True),
}
