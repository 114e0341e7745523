"""The page, from the lines of results."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from fedmoe.comparison.outcomes import difference_text
from fedmoe.comparison.paired import difference
from simulations.attacks.cases import DEFAULT, Line, by_seed, found, grids
from simulations.attacks.catalogue import ATTACKS
from simulations.study import markdown

BOTH = (("flame", "FLAME"), ("fedavg", "FedAvg"))
"""Strategies, as cases and as tables name them."""


def cell(line: Line) -> str:
    """Return the scores and losses of a line, and how many triggered prompts it obeys."""
    if len(line["told"]["refused"]) == line["told"]["lies"] > 0:
        return "refused"
    out = ", left out" if line["told"].get("caught", 0) == line["told"]["lies"] > 0 else ""
    scores = list(line["score"].values())
    shown = " / ".join(f"{s:.0f}" for s in scores) if len(scores) < 3 else f"{mean(scores):.1f}"
    obeyed = f", {line['trigger']['obeyed']:.0f} %" if line["attack"].find("backdoor") >= 0 else ""
    return f"{shown} ({mean(line['loss'].values()):.3f}){obeyed}{out}"


def table(lines: Sequence[Line], grid: str, title: str) -> str:
    """Return a grid's table for each strategy: rules across, attacks down."""
    made = []
    for strategy, name in BOTH:
        cases = [case for case in grids()[grid] if case.strategy == strategy]
        rules, attacks = (
            [*dict.fromkeys(getattr(c, k) for c in cases)] for k in ("rule", "attack")
        )
        rows = {attack: [ATTACKS[attack].says, *("-" for _ in rules)] for attack in attacks}
        for case in cases:
            for line in found(lines, case):
                rows[case.attack][1 + rules.index(case.rule)] = cell(line)
        made.append(markdown([f"{name}, {title}", *(f"`{r}`" for r in rules)], [*rows.values()]))
    return "\n\n".join(made)


def losses(lines: dict[int, Line], seeds: Sequence[int]) -> list[float]:
    """Return the tiers' mean loss of each seed."""
    return [mean(lines[seed]["loss"].values()) for seed in seeds]


def price(lines: Sequence[Line]) -> str:
    """Return what a rule costs honest runs: paired differences of losses over seeds."""
    rows = []
    for strategy, name in BOTH:
        base, ours = (
            by_seed(lines, "honest", strategy=strategy, rule=r) for r in ("none", DEFAULT)
        )
        if not (seeds := sorted(base.keys() & ours.keys())):
            continue
        told = [ours[s]["told"] for s in seeds]
        touched, parts = (sum(t[key] for t in told) for key in ("touched", "trained"))
        loss = ", ".join(f"{x:.4f}" for x in losses(base, seeds))
        gap = difference(losses(ours, seeds), losses(base, seeds), len(BOTH))
        rows.append([name, str(len(seeds)), loss, difference_text(gap, "loss"),
                     f"{touched} of {parts}"])  # fmt: skip
    columns = ["strategy", "seeds", "loss without a rule", "more with the default (interval)",
               "experts of updates clipped or capped"]  # fmt: skip
    said = f"The {len(BOTH)} intervals hold together with 95 % (Bonferroni)."
    return markdown(columns, rows, said if rows else "")


def careful(lines: Sequence[Line]) -> str:
    """Return what lies cost over seeds: paired differences of scores to an honest client's."""
    cases = [case for case in grids()["careful"] if case.attack != "honest"]
    kinds, rows = {(c.rule, c.when, c.attack): 0 for c in cases}, []
    for rule, when, attack in kinds:
        base, ours = (by_seed(lines, "careful", rule=rule, when=when, attack=a)
                      for a in ("honest", attack))  # fmt: skip
        if not (seeds := sorted(base.keys() & ours.keys())):
            continue
        rounds = "one" if when == "last" else "all six"
        row = [f"`{rule}`", rounds, ATTACKS[attack].says, str(len(seeds))]
        for tier in base[seeds[0]]["score"]:
            with_, without = ([x[s]["score"][tier] / 100 for s in seeds] for x in (ours, base))
            row.append(difference_text(difference(with_, without, 2 * len(kinds)), "score"))
        row.append(f"{mean(losses(ours, seeds)) - mean(losses(base, seeds)):+.3f}")
        caught = sum(x["told"]["caught"] == x["told"]["lies"] > 0 for x in ours.values())
        row += [f"{max(x['trigger']['obeyed'] for x in ours.values()):.0f} %", str(caught)]
        rows.append(row)
    columns = ["rule", "lies in", "the client", "seeds", "points, k = 8", "points, k = 1", "loss",
               "triggered prompts obeyed, at most", "left out, seeds"]  # fmt: skip
    said = f"The {2 * len(kinds)} intervals hold together with 95 % (Bonferroni)."
    return markdown(columns, rows, said if rows else "")


def refusals(lines: Sequence[Line]) -> str:
    """Return how much of honest updates each rule leaves out where clients are most unlike."""
    rows = []
    for case in grids()["unlike"]:
        for line in found(lines, case):
            told = line["told"]
            left, held = (told[k] / max(1, told["trained"]) for k in ("left_out", "touched"))
            rows.append([f"`{case.rule}`", cell(line), str(told["honest_refused"]),
                         f"{100 * left:.1f} %", f"{100 * held:.1f} %"])  # fmt: skip
    columns = ["rule", "score (loss)", "updates refused", "experts left out", "clipped or capped"]
    return markdown(columns, rows)


def missing(lines: Sequence[Line]) -> str:
    """Return a sentence for each grid of which cases were not run."""
    said = []
    for name, cases in grids().items():
        if lacking := sum(not found(lines, case) for case in cases):
            said.append(f"- `{name}`: {lacking} of {len(cases)} cases were not run.")
    return "\n".join(said) or "Nothing."


def page(lines: Sequence[Line], words: str) -> str:
    """Return the page: first `words` that a person wrote, then what was measured."""
    parts = [
        words,
        "## Over seeds, beside an honest client in the liar's place",
        careful(lines),
        "## One lie, in the last of six rounds, with one seed",
        table(lines, "table", "lie of round 6"),
        "## Lies in every round",
        table(lines, "whole", "6 rounds"),
        "## No liar",
        price(lines),
        "## Two liars of eight, all in each of 3 rounds",
        table(lines, "pairs", "both send"),
        "## Two liars of twenty, ten in each of 3 rounds",
        table(lines, "twenty", "both send"),
        "## No liar, clients as unlike as Dirichlet 0.1 makes them",
        refusals(lines),
        "## Not run",
        missing(lines),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
