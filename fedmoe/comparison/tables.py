"""The tables of one case: scores, differences, fairness, costs, experts."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Literal

from fedmoe.comparison.fairness import fairness
from fedmoe.comparison.paired import Difference
from fedmoe.comparison.result import MEAN, Result, Spent
from fedmoe.comparison.study import Case, spent_to_reach, spread, verdicts
from fedmoe.report.expert_load import CAPTURED, STARVED
from fedmoe.report.text_table import TextTable
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
"""The costs of a score: each a name, its value if it is known, and its text."""


PAIRED = {
    "seeds": "paired by seed, with its t-interval",
    "examples": "paired by test example, with its t-interval; seeds are not covered",
    "none": "with the interval of unpaired examples, where it has one; seeds are not covered",
}
"""What an interval is over, in words."""


def scores(case: Case) -> TextTable:
    """Return, per variant: mean ± standard deviation per tier, the difference, costs of a round."""
    against = verdicts(case)
    text = points if case.measure == "score" else number_text

    def versus_reference(variant: str) -> str:
        if variant in against:
            return difference_text(against[variant].by_tier[MEAN], case.measure)
        return "reference" if variant == case.reference else DASH

    def other(r: Result) -> float:
        return (r.losses if case.measure == "score" else r.scores)[MEAN]

    rows = [
        [
            variant,
            versus_reference(variant),
            spread([case.values(r)[MEAN] for r in runs], text),
            *(spread([case.values(r)[tier] for r in runs], text) for tier in case.tiers),
            spread([*map(other, runs)], points if case.measure == "loss" else number_text),
            bytes_text(statistics.mean(r.bytes_up for r in runs)),
            f"{statistics.mean(r.client_seconds for r in runs):.1f}",
        ]
        for variant, runs in case.variants.items()
    ]
    score, loss = "Test score in percent", "Test loss per token"
    first, second = (score, loss) if case.measure == "score" else (loss, score)
    columns = ["", "difference [95 %]", MEAN, *case.tiers]
    columns += ["loss" if case.measure == "score" else "score, %", "up per round"]
    columns.append("s per client-round")
    note = f"{first} after the last round"
    note += ": mean ± standard deviation over seeds. " if case.pairs == "seeds" else ". "
    note += f"Difference: of the tiers' mean to that of {case.reference}, {PAIRED[case.pairs]}. "
    note += "" if case.unscored else f"{second}: mean of tiers."
    if case.measure == "loss" and not case.unscored:
        note = f"All scores are the same, so losses are compared: the lower the better. {note}"
    if len(base := case.base_losses) > 1:
        told = ", ".join(f"{number_text(loss)} at k = {k}" for k, loss in base.items())
        note = f"{note.strip()} Loss before training, what fewer experts cost: {told}."
    table = TextTable("Scores", columns, rows, note=note.strip())
    return table.without("score, %") if case.unscored else table


def differences(case: Case) -> TextTable:
    """Return, per variant: the paired difference at every tier, and the signed-rank test."""
    rows = [
        [
            variant,
            *(difference_text(verdict.by_tier[t], case.measure) for t in (MEAN, *case.tiers)),
            count_text(verdict.num_pairs),
            p_text(verdict.p),
            p_text(verdict.p_holm),
        ]
        for variant, verdict in verdicts(case).items()
    ]
    columns = ["", MEAN, *case.tiers, "pairs", "p, Wilcoxon", "p, Holm"]
    unit = "Points" if case.measure == "score" else "Loss per token"
    if case.pairs != "seeds":
        note = f"{unit}, {PAIRED[case.pairs]}."
        table = TextTable(f"Differences to {case.reference}", columns, rows, note=note)
        return table.without(*columns[-3:])
    note = (
        f"{unit}, with 95 % t-intervals over "
        "seeds. Wilcoxon: signed ranks over (seed, tier) pairs, "
        "two-sided; Holm: the same, corrected for the number of variants. A seed's tiers share its "
        "data and adapter, so p tends to be too small: trust it where the interval agrees."
    )
    return TextTable(f"Differences to {case.reference}", columns, rows, note=note)


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


def reach(case: Case) -> TextTable:
    """Return, per variant: the costs up to the validation score that is the target."""
    target = case.score_to_reach
    if target is None:
        return TextTable("", [], [])
    rows = []
    for variant, runs in case.variants.items():
        spent = [s for r in runs if (s := spent_to_reach(r, target))]
        cells = [DASH] * len(COSTS)
        if len(spent) == len(runs):
            cells = [text(mean_if_known([value(s) for s in spent])) for _, value, text in COSTS]
        rows.append([variant, f"{len(spent)} of {len(runs)}", *cells])
    columns = ["", "seeds that reach it", *(name for name, *_ in COSTS)]
    origin = "as set" if case.target is not None else f"nine tenths of {case.reference}'s last"
    note = (
        f"Until the validation score, mean of tiers, was first {percent_text(target)} ({origin}); "
        "mean over seeds, and a dash where a seed does not get there."
    )
    return TextTable("Cost of a target score", columns, rows, note=note).without_empty()


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


def points(value: float) -> str:
    """Return a share of 1 in percent, without the sign."""
    return f"{100 * value:.1f}"


def difference_text(found: Difference, measure: Literal["score", "loss"] = "score") -> str:
    """Return a difference in points, or of losses, with its interval, if it has one."""

    def text(value: float | None) -> str:
        return percent_text(value, signed=True) if measure == "score" else f"{value:+.3f}"

    if found.low is None:
        return text(found.mean)
    return f"{text(found.mean)} [{text(found.low)}, {text(found.high)}]"


def p_text(value: float) -> str:
    """Return a p with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def mean_if_known(values: list[float | None]) -> float | None:
    """Return the mean, or None if there are no values or one of them is None."""
    known = [x for x in values if x is not None]
    return statistics.mean(known) if known and len(known) == len(values) else None
