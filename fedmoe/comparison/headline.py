"""The first sentences on a comparison: what can and what cannot be concluded, and what is best."""

from __future__ import annotations

import statistics

from fedmoe.comparison.bracket import unbracketed
from fedmoe.comparison.outcomes import difference_text, points, power
from fedmoe.comparison.study import Case, Study
from fedmoe.comparison.verdicts import Verdict, verdicts
from fedmoe.report.units import listed, number_text


def headlines(study: Study) -> list[str]:
    """Return what is said first: of every case, and of settings whose search has no bracket."""
    each = [f"{c.name}: {headline(c)}" if c.name else headline(c) for c in study.cases]
    return [*each, *filter(None, [unbracketed(study.trials)])]


def headline(case: Case) -> str:
    """Return what can and cannot be concluded of a case, and its best variant.

    Baselines do not compete.
    """
    competing = [name for name in case.variants if name not in case.baselines]
    if not competing:
        return "There are only baselines, so nothing is compared."
    against = {name: found for name, found in verdicts(case).items() if name in competing}
    if not against:
        one = len(competing) == 1
        why = "there is one variant" if one else f"{case.reference} has no run on a common seed"
        return f"Nothing can be concluded: {why}. {best(case, competing, against)}"
    return f"{concluded(case, against)} {best(case, competing, against)}"


def concluded(case: Case, against: dict[str, Verdict]) -> str:
    """Return which differences chance does not explain, and which it may."""
    what, cells = f"test {case.measure}", [d for v in against.values() for d in v.by_tier.values()]
    if not any(found.mean for found in cells):
        return f"No variant differs from {case.reference} in {what} at all."
    if all(found.low is None for found in cells):
        why = "single examples' losses are not kept"
        if case.pairs == "seeds":
            why = "there is one seed, which shows no spread"
        return f"Nothing can be concluded on differences: {why}."
    sure = [way for s in (-1, 1) if (way := _surely(against, s, case.reference))]
    others = [name for name, verdict in against.items() if not verdict.sure]
    unsure = f"{'any of ' * (len(others) > 1)}{listed(others, 4)} differs"
    said = f"It can be concluded that {what} is {', '.join(sure)}"
    if others:
        said += f"; it cannot be concluded that {unsure}"
    if not sure:
        said = f"It cannot be concluded that {unsure} from {case.reference} in {what}"
    if case.pairs != "seeds":
        over = "the same" if case.pairs == "examples" else "other"
        said += f", on {over} test examples; another seed may differ by more"
    return f"{said}. {power(case)}"


def best(case: Case, competing: list[str], against: dict[str, Verdict]) -> str:
    """Return the best variant, its value, and its difference to the reference."""
    column, by_loss = case.columns[0], case.measure == "loss"
    means = {
        name: statistics.mean(case.values(r)[column] for r in case.variants[name])
        for name in competing
    }
    first = min(means, key=lambda name: means[name] if by_loss else -means[name])
    value = number_text(means[first]) if by_loss else f"{points(means[first])} %"
    what = column if len(case.tiers) > 1 else f"test {case.measure}"
    text = f"{'Lowest' if by_loss else 'Highest'} {what}: "
    if len(means) > 1 and len({*means.values()}) == 1:
        return f"{text}{value}, the same for all variants."
    text += f"{first}, {value}"
    if first == case.reference:
        return f"{text}, the reference itself."
    if first in against:
        unit = "per token" if by_loss else "points"
        found = difference_text(against[first].by_tier[column], case.measure)
        text += f"; {found} {unit} to {case.reference}"
    return f"{text}."


def _surely(against: dict[str, Verdict], sign: int, reference: str) -> str:
    """Return with which variants, and at which tiers, an outcome is surely lower or higher."""
    found = []
    for name, verdict in against.items():
        if tiers := [t for t in verdict.sure if sign * verdict.by_tier[t].mean > 0]:
            found.append(f"{name} ({', '.join(tiers)})")
    way = "lower" if sign < 0 else "higher"
    return f"{way} than {reference}'s with {' and '.join(found)}" if found else ""
