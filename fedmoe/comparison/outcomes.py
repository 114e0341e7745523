"""The tables of a case's outcomes, loss and score: results, and differences to the reference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from fedmoe.comparison.paired import Difference
from fedmoe.comparison.result import MEAN, Result
from fedmoe.comparison.study import Case, Measure, spread
from fedmoe.comparison.verdicts import Verdict, verdicts
from fedmoe.report.text_table import Strong, TextTable
from fedmoe.report.units import DASH, bytes_text, number_text, percent_text

PAIRED = {
    "seeds": "paired by seed, with t-intervals",
    "examples": "paired by test example, with t-intervals; seeds are not covered",
    "none": "with intervals of unpaired examples, where there are any; seeds are not covered",
}
"""What an interval is over, in words."""
ENOUGH = 600
"""Test examples from which nothing is said of how few they are."""
TITLES = {"loss": "Test loss per token", "score": "Test score in percent"}


def results(case: Case, measure: Measure | None = None) -> TextTable:
    """Return, per variant: mean ± standard deviation per tier, the difference, costs of a round.

    Costs and the other outcome stand beside the primary one alone.
    """
    measure = measure or case.measure
    against, text = verdicts(case, measure), _text(measure)

    def versus_reference(variant: str) -> str:
        if variant in against:
            return cell(against[variant].by_tier[case.columns[0]], measure)
        return "reference" if variant == case.reference else DASH

    rows = [
        [
            variant,
            versus_reference(variant),
            *(spread([case.values(r, measure)[t] for r in runs], text) for t in case.columns),
        ]
        for variant, runs in case.variants.items()
    ]
    columns = ["", "difference [95 %]", *case.columns]
    if measure == case.measure:
        second: Measure = "score" if measure == "loss" else "loss"
        columns += ["loss" if second == "loss" else "score, %"]
        columns += ["up per client-round", "s per client-round"]
        for row, runs in zip(rows, case.variants.values(), strict=True):
            others = [case.values(r, second)[MEAN] for r in runs]
            row += [spread(others, _text(second)), bytes_text(_mean(runs, "bytes_up"))]
            row += [f"{_mean(runs, 'client_seconds'):.1f}"]
    table = TextTable(TITLES[measure], columns, rows, note=_results_note(case, measure))
    return table.without("score, %") if case.unscored else table


def differences(case: Case, measure: Measure | None = None) -> TextTable:
    """Return, per variant: the paired difference at every tier; bold where 0 is left out."""
    measure = measure or case.measure
    against = verdicts(case, measure)
    rows = [
        [variant, *(cell(verdict.by_tier[t], measure) for t in case.columns)]
        for variant, verdict in against.items()
    ]
    unit = "Points" if measure == "score" else "Loss per token"
    parts = [f"{unit}{_paired(case, against)}.", _together(against), power(case, measure)]
    title = f"Differences to {case.reference}: {measure}"
    note = " ".join(part for part in (*parts, base(case)) if part)
    return TextTable(title, ["", *case.columns], rows, note=note)


def power(case: Case, measure: Measure | None = None) -> str:
    """Return a sentence on what the differences of a table cannot show."""
    measure = measure or case.measure
    against = verdicts(case, measure)
    if not against:
        return ""
    found = [d.least for v in against.values() for d in v.by_tier.values() if d.least is not None]
    if not found:
        if case.pairs != "seeds":
            return ""
        return "With one seed nothing can be concluded on differences: there is no interval."
    unit = "points" if measure == "score" else "per token"
    middle, most = (_text(measure)(f(found)) for f in (statistics.median, max))
    many = {v.num_pairs for v in against.values()}
    number = f"{min(many)}" if len(many) == 1 else f"{min(many)} to {max(many)}"
    over = "seeds" if case.pairs == "seeds" else "test examples"
    said = f"With {number} {over} a difference under {middle} {unit} cannot be seen"
    return f"{said} (80 % power in the median cell; {most} in the noisiest)."


def base(case: Case) -> str:
    """Return a sentence on the base model's loss at every k; empty where no run tells it."""
    if not (found := case.base_losses):
        return ""
    told = ", ".join(f"{number_text(loss)} at k = {k}" for k, loss in found.items())
    return f"The base model's loss before training: {told}."


def examples(case: Case) -> str:
    """Return a sentence on the number of test examples and their error, if it is small."""
    known = [n for r in case.results for n in r.num_examples.values()]
    if not known or not case.scored or (least := min(known)) >= ENOUGH or not least:
        return ""
    scores = [score for r in case.results for score in r.scores.values()]
    share = min(scores, key=lambda score: abs(score - 0.5))
    error = points(math.sqrt(share * (1 - share) / least))
    said = f"A score is over {least} test examples: its binomial error is up to {error} points"
    return f"{said}; set evaluation.test_examples={ENOUGH} or more where there are as many."


def cell(found: Difference, measure: Measure) -> str:
    """Return a difference as the text of a cell, bold where its interval leaves 0 out."""
    text = difference_text(found, measure)
    return Strong(text) if found.sure else text


def difference_text(found: Difference, measure: Measure = "score") -> str:
    """Return a difference in points, or of losses, with its interval, if it has one."""

    def text(value: float) -> str:
        return percent_text(value, signed=True) if measure == "score" else f"{value:+.3f}"

    if found.low is None or found.high is None:
        return text(found.mean)
    return f"{text(found.mean)} [{text(found.low)}, {text(found.high)}]"


def points(value: float) -> str:
    """Return a share of 1 in percent, without the sign."""
    return f"{100 * value:.1f}"


def _results_note(case: Case, measure: Measure) -> str:
    several = len({r.seed for r in case.results}) > 1 and case.pairs == "seeds"
    over = ": mean ± standard deviation over seeds" if several else ""
    parts = [f"After the last round{over}."]
    if measure == "loss":
        parts.append("Lower is better.")
    if against := verdicts(case, measure):
        what = "of the tiers' mean" if len(case.tiers) > 1 else "of the only tier"
        parts.append(f"Difference: {what} to that of {case.reference}{_paired(case, against)}.")
        parts += [_together(against), power(case, measure)]
    if measure == "loss" and not case.scored and not case.unscored:
        score = points(case.results[0].scores[MEAN])
        parts.append(f"Every score is {score} %, so losses alone are compared.")
    if case.unscored:
        parts.append("Nothing but the loss was measured (evaluation.metric).")
    parts += [examples(case), base(case)]
    return " ".join(part for part in parts if part)


def _paired(case: Case, against: dict[str, Verdict]) -> str:
    """Return what intervals are over; empty without any."""
    any_there = any(d.low is not None for v in against.values() for d in v.by_tier.values())
    return f", {PAIRED[case.pairs]}" if any_there or case.pairs != "seeds" else ""


def _together(against: dict[str, Verdict]) -> str:
    """Return what the intervals of a table hold for; empty without any."""
    tests = next(iter(against.values())).tests if against else 0
    if not any(d.low is not None for v in against.values() for d in v.by_tier.values()):
        return ""
    if tests == 1:
        return "The interval holds with 95 %; bold where it leaves 0 out."
    return f"The {tests} intervals by tier hold together with 95 % (Bonferroni); bold leaves 0 out."


def _text(measure: Measure) -> Callable[[float], str]:
    return points if measure == "score" else number_text


def _mean(runs: list[Result], name: str) -> float:
    return statistics.mean(getattr(r, name) for r in runs)
