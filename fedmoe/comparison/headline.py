"""The result of a case in one sentence."""

from __future__ import annotations

import statistics

from fedmoe.comparison.paired import difference
from fedmoe.comparison.result import MEAN
from fedmoe.comparison.study import Case, verdicts
from fedmoe.comparison.tables import difference_text, points


def headline(case: Case) -> str:
    """Return the best variant of a case in one sentence, and whether chance may explain it.

    Baselines do not compete. As the best was picked among all, the sentence on chance takes the
    interval that holds for all of them.
    """
    against = {name: found for name, found in verdicts(case).items() if name not in case.baselines}
    ahead = {name: found.by_tier[MEAN].mean for name, found in against.items()}
    means = {
        name: statistics.mean(r.scores[MEAN] for r in runs)
        for name, runs in case.variants.items()
        if name not in case.baselines
    }
    if not means:
        return "There are only baselines, so nothing is compared."
    best = max(ahead, key=lambda name: ahead[name], default=case.reference)
    if best not in against or (ahead[best] < 0 and case.reference in means):
        best = case.reference if case.reference in means else max(means, key=lambda n: means[n])
        itself = ", the reference itself." if best == case.reference else "."
        return f"Best mean of tiers: {best}, {points(means[best])} %{itself}"
    found, pairs = against[best].by_tier[MEAN], case.paired(best)
    text = (
        f"Best mean of tiers: {best}, {points(means[best])} %; "
        f"{difference_text(found)} points to {case.reference}"
    )
    if found.low is None:
        return text + " on one seed, which shows no spread."
    wide = difference(
        [a.scores[MEAN] for a, _ in pairs], [b.scores[MEAN] for _, b in pairs], len(against)
    )
    sure = wide.low is not None and wide.low > 0
    many = f"as the best of {len(against)}" if len(against) > 1 else "by its interval"
    return text + (
        f", which chance does not explain, {many}." if sure else f", which may be chance {many}."
    )
