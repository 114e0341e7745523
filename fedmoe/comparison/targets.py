"""The cost of a target: of validation loss, or of a score that is more than a lucky answer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from fedmoe.comparison.result import Point, Result, Spent
from fedmoe.comparison.study import Case
from fedmoe.comparison.tables import COSTS, mean_if_known
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import DASH, number_text, percent_text

LEAST_ANSWERS = 5
"""Right validation answers from which a target score is not the luck of a few."""

Reached = Callable[[Point], bool]


def reach(case: Case) -> TextTable:
    """Return, per variant: the costs up to the target; no rows where it would tell nothing."""
    title = "Cost of a target"
    rows, why = [], missing(case)
    for variant, runs in case.variants.items() if not why else ():
        spent = [s for r in runs if (s := spent_to_reach(r, _reached(case)))]
        cells = [DASH] * len(COSTS)
        if len(spent) == len(runs):
            cells = [text(mean_if_known([value(s) for s in spent])) for _, value, text in COSTS]
        rows.append([variant, f"{len(spent)} of {len(runs)}", *cells])
    columns = ["", "seeds that reach it", *(name for name, *_ in COSTS)]
    note = (
        f"Until {_target(case)}, mean of tiers, was first reached at two checks in succession; "
        "mean over seeds, and a dash where a seed does not get there."
    )
    return TextTable(title, columns, rows, note=note).without_empty()


def missing(case: Case) -> str:
    """Return why there is no table of a target's cost; empty where there is one."""
    if case.target is None and case.target_loss is None:
        return "No target is set (target_loss, or target), so its cost is not shown."
    if case.target is not None and (found := _examples(case)) * case.target < LEAST_ANSWERS:
        return (
            f"The cost of {_target(case)} is not shown: of {found} validation examples that is "
            f"under {LEAST_ANSWERS} right answers, which a lucky round gives."
        )
    reached = _reached(case)
    if not any(all(spent_to_reach(r, reached) for r in rs) for rs in case.variants.values()):
        return (
            f"The cost of {_target(case)} is not shown: no variant reaches it on all seeds, at two "
            "checks in succession."
        )
    return ""


def spent_to_reach(result: Result, reached: Reached) -> Spent | None:
    """Return the costs up to the first of two checks in succession that reach a target."""
    found = pairwise(result.points)
    return next((a.spent for a, b in found if reached(a) and reached(b)), None)


def _reached(case: Case) -> Reached:
    score, loss = case.target, case.target_loss
    return lambda p: (score is None or p.score >= score) and (loss is None or p.loss <= loss)


def _target(case: Case) -> str:
    score = [f"a validation score of {percent_text(case.target)}"] if case.target else []
    loss = [f"a validation loss of {number_text(case.target_loss)}"] if case.target_loss else []
    return " and ".join(score + loss)


def _examples(case: Case) -> int:
    """Return the fewest validation examples that a tier of a run was scored on."""
    return min((p.examples for r in case.results for p in r.points), default=0)
