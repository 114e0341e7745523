"""The tables of one case beside its outcomes: fairness, costs, experts."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from fedmoe.comparison.fairness import fairness
from fedmoe.comparison.outcomes import points
from fedmoe.comparison.result import Result, Spent
from fedmoe.comparison.study import Case, spread
from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import bytes_text, flops_text, number_text, seconds_text

Cost = tuple[str, Callable[[Spent], float | None], Callable[[float | None], str]]
COSTS: tuple[Cost, ...] = (
    ("bytes both ways", lambda s: s.bytes, bytes_text),
    ("training work", lambda s: s.flops, flops_text),
    ("client time", lambda s: s.client_seconds, seconds_text),
    ("virtual time", lambda s: s.virtual_seconds, seconds_text),
)
"""The costs of a score: each a name, its value if it is known, and its text."""


def clients(case: Case) -> TextTable:
    """Return, per variant: how evenly it serves its clients."""
    found = {
        variant: fair
        for variant, runs in case.variants.items()
        if (fair := [f for r in runs if (f := fairness(r))])
        and any(f.mean for f in fair)  # where nobody scores, all are served alike
    }
    return TextTable.of(
        "Clients",
        found.items(),
        ("", lambda item: item[0]),
        ("mean client", lambda item: spread([f.mean for f in item[1]], points)),
        ("worst client", lambda item: spread([f.worst for f in item[1]], points)),
        ("worst tenth", lambda item: spread([f.worst_tenth for f in item[1]], points)),
        ("Jain index", lambda item: spread([f.jain for f in item[1]], number_text)),
        note=f"Percent{case.over_seeds}. A client's score is that on its own test rows; where "
        "clients hold none, the expected test score on its own mix of labels: each label's score "
        "at the client's tier, weighted by the client's examples of it. Worst tenth: mean of the "
        "lowest 10 % of clients. Jain index: 1 if all clients have equal scores, 1/n if one has "
        "everything.",
    )


def costs(case: Case) -> TextTable:
    """Return, per variant: the costs of its whole run, on average over seeds."""

    def mean(runs: list[Result], value: Callable[[Spent], float | None]) -> float | None:
        return mean_if_known([value(r.spent) for r in runs])

    table = TextTable.of(
        "Costs",
        case.variants.items(),
        ("", lambda item: item[0]),
        ("sent up", lambda item: bytes_text(mean(item[1], lambda s: s.bytes_up))),
        ("sent down", lambda item: bytes_text(mean(item[1], lambda s: s.bytes_down))),
        ("training work", lambda item: flops_text(mean(item[1], lambda s: s.flops))),
        ("client time", lambda item: seconds_text(mean(item[1], lambda s: s.client_seconds))),
        ("virtual time", lambda item: seconds_text(mean(item[1], lambda s: s.virtual_seconds))),
        ("rounds here", lambda item: seconds_text(mean(item[1], lambda s: s.wall_seconds))),
        ("run here", lambda item: seconds_text(statistics.mean(r.seconds for r in item[1]))),
        note=f"A whole run, all clients{case.over_seeds}. Client time: sum of local training. "
        "Virtual time: of the rounds on the clients' modelled devices. Here: wall time on the "
        "machine that simulated them.",
    )
    return table.without_empty()


def experts(case: Case) -> TextTable:
    """Return, per variant: starved and captured experts in the first and in the last round."""
    rows = []
    for variant, runs in case.variants.items():
        if found := [f for r in runs if (f := r.extreme_experts)]:
            cells = [
                spread([float(f[which][when]) for f in found], points)
                for which in (0, 1)
                for when in (0, -1)
            ]
            rows.append([variant, *cells])
    columns = ["", "starved, first round", "last", "captured, first round", "last"]
    note = (
        f"Percent of all experts, over layers. Starved: an expert that gets less than {STARVED:g} "
        f"times an equal share of its layer's tokens; captured: more than {CAPTURED:g} times."
    )
    return TextTable("Starved and captured experts", columns, rows, note=note)


def mean_if_known(values: list[float | None]) -> float | None:
    """Return the mean, or None if there are no values or one of them is None."""
    known = [x for x in values if x is not None]
    return statistics.mean(known) if known and len(known) == len(values) else None
