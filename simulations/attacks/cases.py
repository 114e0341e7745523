"""What is run: a case is one federation, rule and attack; grids of them, the important first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fedmoe.aggregation import ROBUST_RULES, FedAvg, Flame, RobustRule
from fedmoe.aggregation.mean import Mean
from fedmoe.rounds import ServerState
from simulations.attacks.catalogue import ATTACKS
from simulations.attacks.lab import Lab
from simulations.attacks.rounds import Known, Round, Told

MEANS: dict[str, Mean] = {"flame": Flame(), "fedavg": FedAvg()}
DEFAULT = "clip"
WHOLE = ("flip", "bound", "ipm", "sideways", "backdoor", "backdoor_bound", "focus_bound",
         "labels_bound", "backdoor_common", "backdoor_rare", "alie", "noise")  # fmt: skip
"""Attacks over all rounds of a run."""
When = Literal["last", "all"]
CAREFUL: dict[tuple[str, When], tuple[str, ...]] = {
    (DEFAULT, "last"): ("honest", "bound", "sideways", "alie", "labels_bound", "backdoor",
                        "backdoor_bound", "backdoor_focus", "own_backdoor", "zeros"),
    (DEFAULT, "all"): ("honest", "absent", "bound", "sideways", "backdoor_bound"),
    ("fltrust", "last"): ("honest", "bound", "sideways", "backdoor", "backdoor_bound"),
}  # fmt: skip
"""By rule, and when the liar lies: what is measured over several seeds, with more test examples."""
SEEDS = range(5)
PAIRED = ("bound", "sideways", "alie", "ipm", "backdoor_bound")
RULES = ("none", "clip", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median",
         "centred_clipping", "fltrust")  # fmt: skip


Line = dict[str, Any]
"""A case and what came of it."""


@dataclass(frozen=True)
class Case:
    """One line of the results."""

    strategy: str = "flame"
    rule: str = DEFAULT
    attack: str = "honest"
    when: When = "last"
    """Lies in the last round that it is in alone, after honest ones without a rule, or in all."""
    clients: int = 8
    per_round: int = 4
    liars: int = 1
    rounds: int = 6
    steps: int = 30
    seed: int = 0
    alpha: float = 0.5
    test_examples: int = 100

    def settings(self) -> tuple[str, ...]:
        """Return what it changes of the quickstart."""
        return (
            f"rounds={self.rounds}",
            f"seed={self.seed}",
            f"clients_per_round={self.per_round}",
            f"training.steps={self.steps}",
            f"partition.num_clients={self.clients}",
            f"partition.alpha={self.alpha}",
            f"evaluation.test_examples={self.test_examples}",
        )


STEP_SECONDS, SCORE_SECONDS = 0.12, 5.5
"""Processor time of a local step, and of the scores of 100 examples, on one core of 2026."""


def seconds(case: Case) -> float:
    """Return the processor time that a case takes, about, beside others of its grid."""
    trained = 0 if case.when == "last" else case.per_round * (case.rounds - 1)
    return STEP_SECONDS * case.steps * trained + SCORE_SECONDS * case.test_examples / 100


def grids() -> dict[str, list[Case]]:
    """Return all cases by grid."""

    def both(cases: Iterable[Case]) -> list[Case]:
        return [replace(case, strategy=name) for name in MEANS for case in cases]

    short = Case(when="all", rounds=4, steps=10)
    wide = replace(short, per_round=8, rounds=3)
    calm = [replace(wide, rule=rule) for rule in RULES]
    pairs = [replace(case, attack=a, liars=2) for a in PAIRED for case in calm]
    seeds = [replace(short, rule=r, seed=seed) for seed in range(3) for r in ("none", DEFAULT)]
    lies = [Case(rule=rule, when=when, attack=a, test_examples=600)
            for (rule, when), attacks in CAREFUL.items() for a in attacks]  # fmt: skip
    return {
        "table": both([Case(rule=rule, attack=a) for a in ATTACKS for rule in RULES]),
        "honest": both(seeds),
        "whole": both([Case(when="all", attack=a) for a in ("honest", *WHOLE)]),
        "careful": [replace(case, seed=seed) for seed in SEEDS for case in lies],
        "pairs": both([*calm, *pairs]),
        "unlike": [replace(case, alpha=0.1) for case in calm],
        "twenty": both([replace(case, clients=20, per_round=10) for case in pairs]),
    }  # fmt: skip


def rule_of(text: str) -> RobustRule:
    """Return a rule from `name` or `name:setting=number,...`, where a setting may be null."""
    name, _, given = text.partition(":")
    pairs = [pair.split("=") for pair in given.split(",") if pair]
    numbers = {key: None if value == "null" else float(value) for key, value in pairs}
    return ROBUST_RULES.find(name)(**numbers)


class Bench:
    """Runs cases, and keeps the federation and the updates that several of them share."""

    def __init__(self) -> None:
        self.labs: dict[tuple[tuple[str, ...], int], Lab] = {}
        self.trained: dict[tuple[int, str], Known] = {}
        """By the round and the adapter that it began with: rounds of several cases begin alike."""
        self.scored: dict[str, dict[str, dict[str, float]]] = {}
        """By the adapter: a lie that is left out leaves the same one as another."""

    def lab(self, case: Case) -> Lab:
        """Return the federation of a case, prepared once; only the latest is kept."""
        key = (case.settings(), case.liars)
        if key not in self.labs:
            self.labs, self.trained, self.scored = {key: Lab(*key)}, {}, {}
        return self.labs[key]

    def round(self, lab: Lab, state: ServerState) -> Round:
        """Return the round that begins with a state."""
        known = self.trained.setdefault((state.round, state.adapter.digest()), {})
        return Round(lab, state, known)

    def line(self, case: Case) -> dict[str, Any]:
        """Return what came of a case."""
        lab, told = self.lab(case), Told()
        strategy, rule = MEANS[case.strategy], rule_of(case.rule)
        attack, tiers = ATTACKS[case.attack], [*lab.setup.top_ks]
        tiers = [tiers[0], tiers[-1]]
        if case.when == "last":
            state = self.last(lab, case).after(strategy, rule, attack, told)
        else:
            state = self.after_all(lab, case, strategy, rule, told)
        if (digest := state.adapter.digest()) not in self.scored:
            self.scored[digest] = lab.scores(state, tiers)
        return asdict(case) | {"told": asdict(told)} | self.scored[digest]

    def after_all(
        self, lab: Lab, case: Case, strategy: Mean, rule: RobustRule, told: Told
    ) -> ServerState:
        """Return the state after all rounds, with the case's attack in each."""
        state = lab.server.first_state()
        for _ in range(case.rounds):
            state = self.round(lab, state).after(strategy, rule, ATTACKS[case.attack], told)
        return state

    def last(self, lab: Lab, case: Case) -> Round:
        """Return the last round that a liar is in, after honest ones of FLAME without a rule."""
        first, liars = lab.server.first_state(), {*lab.liars}
        later = [Round(lab, replace(first, round=n), {}) for n in range(case.rounds)]
        number = max(n for n, one in enumerate(later) if liars & {t.client for t in one.tasks})
        before = replace(case, attack="honest", rounds=number)
        state = self.after_all(lab, before, MEANS["flame"], rule_of("none"), Told())
        return self.round(lab, state)


def found(lines: Iterable[Line], case: Case) -> list[Line]:
    """Return the lines of a case."""
    return [line for line in lines if vars(case).items() <= line.items()]


def by_seed(lines: Sequence[Line], grid: str, **which: str) -> dict[int, Line]:
    """Return the lines of a grid's cases with these fields, by their seed."""
    cases = [c for c in grids()[grid] if which.items() <= vars(c).items()]
    return {case.seed: line for case in cases for line in found(lines, case)}
