"""The tables of one case: scores, differences, fairness, costs, what a target costs, experts."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from fedmoe.comparison.report.experts import starved_and_captured
from fedmoe.comparison.report.paired import Difference
from fedmoe.comparison.report.result import MEAN, Result, Spent
from fedmoe.comparison.report.study import Case, fairness, spent_to_reach, spread, verdicts
from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.report.tables import Table
from fedmoe.report.units import (
    DASH,
    bytes_text,
    count_text,
    flops_text,
    number_text,
    percent_text,
    seconds_text,
)

Cost = tuple[str, Callable[[Spent], float | None], Callable[[float | None], str]]
COSTS: tuple[Cost, ...] = (
    ("bytes both ways", lambda s: s.bytes, bytes_text),
    ("training work", lambda s: s.flops, flops_text),
    ("client time", lambda s: s.client_seconds, seconds_text),
    ("virtual time", lambda s: s.virtual_seconds, seconds_text),
)
"""What a score may cost: the name, the value if it is known, and its text."""


def scores(case: Case) -> Table:
    """A row a variant: mean ± standard deviation per tier, the difference, what a round costs."""
    against = verdicts(case)
    rows = [
        [
            variant,
            *(spread([r.scores[tier] for r in runs], points) for tier in (*case.tiers, MEAN)),
            difference_text(against[variant].by_tier[MEAN])
            if variant in against
            else "reference"
            if variant == case.reference
            else DASH,
            bytes_text(statistics.mean(r.bytes_up for r in runs)),
            f"{statistics.mean(r.client_seconds for r in runs):.1f}",
        ]
        for variant, runs in case.variants.items()
    ]
    columns = ["", *case.tiers, MEAN, f"difference to {case.reference} [95 %]", "up per round"]
    columns.append("s per client-round")
    note = "Test score in percent after the last round: mean ± standard deviation over seeds. "
    note += "Difference: of the tiers' mean, in points, paired by seed, with its t-interval."
    return Table("Scores", columns, rows, note=note)


def differences(case: Case) -> Table:
    """A row a variant: the paired difference at every tier, and the signed-rank test."""
    rows = [
        [
            variant,
            *(difference_text(verdict.by_tier[tier]) for tier in (*case.tiers, MEAN)),
            count_text(verdict.num_pairs),
            p_text(verdict.p),
            p_text(verdict.p_holm),
        ]
        for variant, verdict in verdicts(case).items()
    ]
    columns = ["", *case.tiers, MEAN, "pairs", "p, Wilcoxon", "p, Holm"]
    note = (
        "Points, with 95 % t-intervals over seeds. Wilcoxon: signed ranks over (seed, tier) pairs, "
        "two-sided; Holm: the same, corrected for the number of variants. A seed's tiers share its "
        "data and adapter, so p is rather too small: believe it where the interval agrees."
    )
    return Table(f"Differences to {case.reference}", columns, rows, note=note)


def clients(case: Case) -> Table:
    """A row a variant: how evenly its clients fare."""
    rows = []
    for variant, runs in case.variants.items():
        found = [f for r in runs if (f := fairness(r))]
        if found:
            rows.append(
                [
                    variant,
                    *(
                        spread([getattr(f, name) for f in found], points)
                        for name in ("mean", "worst", "worst_tenth")
                    ),
                    spread([f.jain for f in found], lambda x: number_text(x)),
                ]
            )
    columns = ["", "mean client", "worst client", "worst tenth", "Jain index"]
    note = (
        "Percent, mean ± standard deviation over seeds. A client's score is the expected test "
        "score on its own mix of labels: each label's score at the client's tier, weighed by the "
        "client's examples of it. Worst tenth: mean of the lowest 10 % of clients. Jain index: 1 "
        "if all clients fare alike, 1/n if one has everything."
    )
    return Table("Clients", columns, rows, note=note)


def costs(case: Case) -> Table:
    """A row a variant: what its whole run cost, on average over seeds."""

    def mean(runs: list[Result], value: Callable[[Result], float | None]) -> float | None:
        values = [x for r in runs if (x := value(r)) is not None]
        return statistics.mean(values) if len(values) == len(runs) else None

    rows = [
        [
            variant,
            bytes_text(mean(runs, lambda r: r.spent.bytes_up)),
            bytes_text(mean(runs, lambda r: r.spent.bytes_down)),
            flops_text(mean(runs, lambda r: r.spent.flops)),
            seconds_text(mean(runs, lambda r: r.spent.client_seconds)),
            seconds_text(mean(runs, lambda r: r.spent.virtual_seconds)),
            seconds_text(mean(runs, lambda r: r.spent.wall_seconds)),
            seconds_text(mean(runs, lambda r: r.seconds)),
        ]
        for variant, runs in case.variants.items()
    ]
    columns = ["", "sent up", "sent down", "training work", "client time", "virtual time"]
    columns += ["rounds here", "run here"]
    note = (
        "A whole run, all clients, mean over seeds. Client time: sum of local training. Virtual "
        "time: of the rounds on the clients' modelled devices. Here: wall time on the machine that "
        "simulated them."
    )
    return shown("Costs", columns, rows, note)


def reach(case: Case) -> Table:
    """A row a variant: what had been spent when validation first reached the target."""
    target = case.score_to_reach
    if target is None:
        return Table("", [], [])
    rows = []
    for variant, runs in case.variants.items():
        spent = [s for r in runs if (s := spent_to_reach(r, target))]
        cells = [_mean_cost(spent, cost) if len(spent) == len(runs) else DASH for cost in COSTS]
        rows.append([variant, f"{len(spent)} of {len(runs)}", *cells])
    columns = ["", "seeds that reach it", *(name for name, *_ in COSTS)]
    said = "as set" if case.target is not None else f"nine tenths of {case.reference}'s last"
    note = (
        f"Until the validation score, mean of tiers, was first {percent_text(target)} ({said}); "
        "mean over seeds, and a dash where a seed does not get there."
    )
    return shown("Cost of a target score", columns, rows, note)


def experts(case: Case) -> Table:
    """A row a variant: starved and captured experts in the first and in the last round."""
    rows = []
    for variant, runs in case.variants.items():
        found = [f for r in runs if (f := starved_and_captured(r))]
        if found:
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
    return Table("Starved and captured experts", columns, rows, note=note)


def points(value: float) -> str:
    """A share of 1 in percent, without the sign."""
    return f"{100 * value:.1f}"


def difference_text(found: Difference) -> str:
    """A difference in points with its interval, if it has one."""
    text = percent_text(found.mean, signed=True)
    if found.low is None:
        return text
    low, high = (percent_text(x, signed=True) for x in (found.low, found.high))
    return f"{text} [{low}, {high}]"


def p_text(value: float) -> str:
    """A p with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def shown(title: str, columns: list[str], rows: list[list[str]], note: str) -> Table:
    """A table without the columns in which nobody has a value."""
    kept = [0, *(i for i in range(1, len(columns)) if any(row[i] != DASH for row in rows))]
    return Table(title, [columns[i] for i in kept], [[r[i] for i in kept] for r in rows], note=note)


def _mean_cost(spent: list[Spent], cost: Cost) -> str:
    _, value, text = cost
    values = [x for s in spent if (x := value(s)) is not None]
    return text(statistics.mean(values)) if values and len(values) == len(spent) else DASH
