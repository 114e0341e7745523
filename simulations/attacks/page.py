"""The page, from the lines of results."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from fedmoe.comparison.outcomes import difference_text
from fedmoe.comparison.paired import difference
from simulations.attacks.cases import DEFAULT, Case, Line, found, grids
from simulations.attacks.catalogue import ATTACKS
from simulations.study import markdown

BOTH = (("flame", "FLAME"), ("fedavg", "FedAvg"))
"""Strategies, as cases and as tables name them."""


def cell(line: Line | None) -> str:
    """Return the scores and losses of a line, and how many triggered prompts it obeys."""
    if line is None:
        return "-"
    if len(line["told"]["refused"]) == line["told"]["lies"] > 0:
        return "refused"
    out = ", left out" if line["told"].get("caught", 0) == line["told"]["lies"] > 0 else ""
    scores = list(line["score"].values())
    shown = " / ".join(f"{s:.0f}" for s in scores) if len(scores) < 3 else f"{mean(scores):.1f}"
    obeyed = f", {line['trigger']['obeyed']:.0f} %" if line["attack"].find("backdoor") >= 0 else ""
    return f"{shown} ({mean(line['loss'].values()):.3f}){obeyed}{out}"


def single(lines: Sequence[Line]) -> str:
    """Return the table of single lies in the last round."""
    rows = []
    for attack in ATTACKS:
        row = [ATTACKS[attack].says]
        for strategy, _ in BOTH:
            for rule in ("none", DEFAULT):
                at = found(lines, Case(strategy, rule, attack))
                row.append(cell(at[0] if at else None))
        rows.append(row)
    columns = ["lie of round 6"]
    for _, name in BOTH:
        columns += [f"{name}, no rule", f"`{DEFAULT}`"]
    return markdown(columns, rows)


def rounds(lines: Sequence[Line], cases: Sequence[Case], title: str) -> str:
    """Return a table of whole runs: rules across, attacks down."""
    rules, attacks = ([*dict.fromkeys(getattr(c, k) for c in cases)] for k in ("rule", "attack"))
    rows = []
    for attack in attacks:
        row = [ATTACKS[attack].says]
        for rule in rules:
            at = [x for c in cases if (c.rule, c.attack) == (rule, attack) for x in found(lines, c)]
            row.append(cell(at[0] if at else None))
        rows.append(row)
    return markdown([title, *(f"`{rule}`" for rule in rules)], rows)


def price(lines: Sequence[Line]) -> str:
    """Return what a rule costs honest runs: paired differences of losses over seeds."""
    cases, rows = grids()["honest"], []
    for strategy, _ in BOTH:
        base, ours = (
            {
                line["seed"]: line
                for c in cases
                if (c.strategy, c.rule) == (strategy, rule)
                for line in found(lines, c)
            }
            for rule in ("none", DEFAULT)
        )
        seeds = sorted(base.keys() & ours.keys())
        if not seeds:
            continue
        with_, without = ([mean(side[s]["loss"].values()) for s in seeds] for side in (ours, base))
        told = [ours[s]["told"] for s in seeds]
        touched, parts = (sum(t[key] for t in told) for key in ("touched", "trained"))
        loss = ", ".join(f"{x:.4f}" for x in without)
        of = f"{touched} of {parts}"
        gap = difference_text(difference(with_, without, len(BOTH)), "loss")
        rows.append([strategy, str(len(seeds)), loss, gap, of])
    columns = ["strategy", "seeds", "loss without a rule", "more with the default (interval)",
               "experts of updates clipped or capped"]  # fmt: skip
    said = f"The {len(BOTH)} intervals hold together with 95 % (Bonferroni)."
    return markdown(columns, rows, said if rows else "")


def careful(lines: Sequence[Line]) -> str:
    """Return what lies cost over seeds: paired differences of scores to an honest client's."""
    cases, rows = grids()["careful"], []
    kinds = [*dict.fromkeys((c.when, c.attack) for c in cases if c.attack != "honest")]
    for when, attack in kinds:
        honest, ours = (
            {c.seed: x for c in cases if (c.when, c.attack) == (when, name)
             for x in found(lines, c)} for name in ("honest", attack)
        )  # fmt: skip
        seeds = sorted(honest.keys() & ours.keys())
        if not seeds:
            continue
        row = ["one" if when == "last" else "all six", ATTACKS[attack].says, str(len(seeds))]
        for tier in honest[seeds[0]]["score"]:
            with_, without = ([x[s]["score"][tier] / 100 for s in seeds] for x in (ours, honest))
            row.append(difference_text(difference(with_, without, 2 * len(kinds)), "score"))
        with_, without = ([mean(x[s]["loss"].values()) for s in seeds] for x in (ours, honest))
        row.append(f"{mean(with_) - mean(without):+.3f}")
        caught = sum(x["told"]["caught"] == x["told"]["lies"] > 0 for x in ours.values())
        row += [f"{max(x['trigger']['obeyed'] for x in ours.values()):.0f} %", str(caught)]
        rows.append(row)
    columns = ["lies in", "the client", "seeds", "points, k = 8", "points, k = 1", "loss",
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
    cases = grids()
    parts = [
        words,
        "## The default rule over seeds, beside an honest client in the liar's place",
        careful(lines),
        "## One lie, in the last of six rounds",
        single(lines),
        "## One lie, in the last of six rounds, against every other rule",
        *(
            rounds(
                lines, [c for c in cases["rules"] if c.strategy == name], f"lie of round 6, {text}"
            )
            for name, text in BOTH
        ),
        "## Lies in every round",
        rounds(lines, cases["whole"], "FLAME, 6 rounds"),
        rounds(lines, cases["whole_fedavg"], "FedAvg, 6 rounds"),
        "## No liar",
        price(lines),
        "## Two liars of eight, all in each of 3 rounds",
        rounds(lines, cases["pairs"], "FLAME, both send"),
        rounds(lines, cases["pairs_fedavg"], "FedAvg, both send"),
        "## Two liars of twenty, ten in each of 3 rounds",
        rounds(lines, cases["twenty"], "FLAME, both send"),
        rounds(lines, cases["twenty_fedavg"], "FedAvg, both send"),
        "## No liar, clients as unlike as Dirichlet 0.1 makes them",
        refusals(lines),
        "## Not run",
        missing(lines),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
