"""The result of a case in one sentence."""

from __future__ import annotations

import statistics

from fedmoe.comparison.paired import Difference, difference
from fedmoe.comparison.result import MEAN
from fedmoe.comparison.study import Case, verdicts
from fedmoe.comparison.tables import difference_text, points
from fedmoe.report.units import number_text


def headline(case: Case) -> str:
    """Return the best variant of a case in one sentence, and whether chance may explain it.

    Where all scores are the same, the best one has the lowest loss.
    Baselines do not compete. As the best was picked among all, the sentence on chance takes the
    interval that holds for all of them.
    """
    against = {name: found for name, found in verdicts(case).items() if name not in case.baselines}
    by_loss = case.measure == "loss"
    sign = -1 if by_loss else 1
    ahead = {name: sign * found.by_tier[MEAN].mean for name, found in against.items()}
    means = {
        name: statistics.mean(case.values(r)[MEAN] for r in runs)
        for name, runs in case.variants.items()
        if name not in case.baselines
    }
    if not means:
        return "There are only baselines, so nothing is compared."

    def value(name: str) -> str:
        return number_text(means[name]) if by_loss else f"{points(means[name])} %"

    begin, unit = "Best mean of tiers", "points"
    if by_loss:
        score = points(case.results[0].scores[MEAN])
        begin = f"Every score is {score} %, so losses tell more. Lowest mean of tiers"
        begin = "Lowest mean of tiers" if case.unscored else begin
        unit = "per token"
    best = max(ahead, key=lambda name: ahead[name], default=case.reference)
    if case.pairs != "seeds":
        begin = begin.replace("Best mean", "Mean").replace("Lowest mean", "Mean")
    elif best not in against or (ahead[best] < 0 and case.reference in means):
        best = case.reference
        if best not in means:
            best = max(means, key=lambda n: sign * means[n])
        itself = ", the reference itself." if best == case.reference else "."
        return f"{begin}: {best}, {value(best)}{itself}"
    found, pairs = against[best].by_tier[MEAN], case.paired(best)
    text = f"{begin}: {best}, {value(best)}; "
    if not any(ahead.values()):
        return f"{begin}: {value(best)}, the same for all variants."
    text += f"{difference_text(found, case.measure)} {unit} to {case.reference}"
    if case.pairs != "seeds":
        return text + between(case, found)
    if found.low is None:
        return text + " on one seed, which shows no spread."
    ours, theirs = ([case.values(r)[MEAN] for r in runs] for runs in zip(*pairs, strict=True))
    wide = difference(ours, theirs, len(against))
    nearest = wide.low if sign > 0 else wide.high
    sure = nearest is not None and sign * nearest > 0
    many = f"as the best of {len(against)}" if len(against) > 1 else "by its interval"
    return text + (
        f", which chance does not explain, {many}." if sure else f", which may be chance {many}."
    )


def between(case: Case, found: Difference) -> str:
    """Return the end of the sentence for two runs: what their interval covers, and what not."""
    if found.low is None or found.high is None:
        return ", without an interval, as single examples' losses are not kept."
    over = "on the same test examples" if case.pairs == "examples" else "on unpaired examples"
    sure = "is more than their chance" if found.low * found.high > 0 else "may be their chance"
    return f" {over}, which {sure}; another seed may differ by more."
