"""Rules that wrap a weighted mean and withstand a minority of clients that lie.

In reading order: `geometry` (norms and inner products of BA's change, by factors), `terms` (a
round's updates and weights), `rule` (the hooks), `guarded` (what all start from), `clip` (the
default); then one rule a file, its paper's formula in the docstring. To add one: a file with a
`@section` that derives from `Guarded` and overrides `choose`, and its name in `ROBUST_RULES`.
"""

from __future__ import annotations

from typing import Any

from fedmoe.aggregation.robust.centred_clipping import CentredClipping
from fedmoe.aggregation.robust.clip import Clip
from fedmoe.aggregation.robust.fltrust import FLTrust
from fedmoe.aggregation.robust.geometric_median import GeometricMedian
from fedmoe.aggregation.robust.krum import Krum, MultiKrum
from fedmoe.aggregation.robust.median import Median
from fedmoe.aggregation.robust.rule import PLAIN, NoRule, RobustRule, unfit
from fedmoe.aggregation.robust.trimmed_mean import TrimmedMean
from fedmoe.section import Open

RULES: tuple[type[RobustRule], ...] = (
    Clip,
    NoRule,
    Median,
    TrimmedMean,
    Krum,
    MultiKrum,
    GeometricMedian,
    CentredClipping,
    FLTrust,
)
ROBUST_RULES = Open("fedmoe.robust_rules", RobustRule, RULES, server_only=True)
"""Components that `robust` in a configuration may name."""


def rule_for(given: RobustRule | None, strategy: Any, hidden: bool = False) -> RobustRule:
    """Return the rule of an experiment: `clip`, if none is given and the strategy is a mean.

    Where single updates are `hidden` from the server, it can judge none.
    """
    return given or (PLAIN if hidden or unfit(strategy) else Clip())
