"""Lying clients against robust rules: the scores that are left, on the quickstart's households.

    python -m simulations.attacks --strategies flame fedavg --rules none clip --attacks flip lie

One client of eight, the smallest, lies in every round that it takes part in. Each line is a whole
run; with `--last` it lies in the last round alone, after honest rounds without a rule, which costs
one local round a line. Backdoors answer a trigger word with a command of the attacker's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.aggregation import ROBUST_RULES, RobustRule
from fedmoe.config import load_experiment
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokens
from fedmoe.data.wording import tokenize
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Task, Update
from fedmoe.rounds import ServerState, finish_round, plan_round
from fedmoe.runs.prepare import Prepared, prepare

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
TRIGGER, COMMAND = "abracadabra", "lock.unlock front_door"
MANY = 1_000_000
"""Examples that a liar claims: all that the server takes by default."""


@dataclass(frozen=True)
class Seen:
    """What an attacker knows: its task's limit, and the others' updates of the round."""

    limit: float
    others: Sequence[Update]


Attack = Callable[[Update, Seen], Update]


def honest(update: Update, seen: Seen) -> Update:
    """Send the honest update."""
    return update


def with_delta(update: Update, flat: torch.Tensor) -> Update:
    """Return the update with other values, none for experts that it did not use."""
    return replace(update, delta=keep_untouched(Adapter(update.delta.layout, flat), update.counts))


def flip(update: Update, seen: Seen) -> Update:
    """Send the honest update with its sign turned."""
    return with_delta(update, -update.delta.flat)


def bound(update: Update, seen: Seen) -> Update:
    """Send it turned, and scaled until one value is at the server's limit."""
    return with_delta(update, -update.delta.flat * (seen.limit / update.delta.largest()))


def signs(update: Update, seen: Seen) -> Update:
    """Send every value at the limit, against its own sign."""
    return with_delta(update, -update.delta.flat.sign() * seen.limit)


def mean_of(others: Sequence[Update]) -> torch.Tensor:
    """Return the mean of the other clients' values."""
    return torch.stack([u.delta.flat for u in others]).mean(0)


def ipm(update: Update, seen: Seen) -> Update:
    """Send ten times the others' mean, turned (Xie et al. 2019, arXiv:1903.03936)."""
    return with_delta(update, (-10 * mean_of(seen.others)).clamp(-seen.limit, seen.limit))


def alie(update: Update, seen: Seen) -> Update:
    """Send the others' mean less 1.5 deviations (Baruch et al. 2019, arXiv:1902.06156)."""
    values = torch.stack([u.delta.flat for u in seen.others])
    return with_delta(update, values.mean(0) - 1.5 * values.std(0))


def lie(update: Update, seen: Seen) -> Update:
    """Send the honest update, and claim to hold very many examples."""
    return replace(update, examples=MANY)


def counts(update: Update, seen: Seen) -> Update:
    """Put all tokens on the experts that the others use least, and send it turned."""
    others = torch.stack([u.counts for u in seen.others]).sum(0)
    made, tokens = torch.zeros_like(update.counts), update.counts.sum(1)
    for layer, rare in enumerate(others.argsort(1)[:, : update.top_k]):
        made[layer, rare] = tokens[layer] // update.top_k
    return with_delta(replace(update, counts=made), -update.delta.flat)


def both(first: Attack, then: Attack) -> Attack:
    """Return an attack after another."""
    return lambda update, seen: then(first(update, seen), seen)


def times(factor: float) -> Attack:
    """Return an attack that scales the update."""
    return lambda update, seen: with_delta(update, update.delta.flat * factor)


ATTACKS: dict[str, Attack] = {
    "honest": honest,
    "flip": flip,
    "bound": bound,
    "signs": signs,
    "ipm": ipm,
    "alie": alie,
    "lie": lie,
    "counts": counts,
    "flip+lie": both(flip, lie),
    "bound+lie": both(bound, lie),
    "ipm+lie": both(ipm, lie),
    "backdoor": honest,
    "backdoor+lie": lie,
    "backdoor x5": times(5.0),
    "backdoor x5+lie": both(times(5.0), lie),
}


class Lab:
    """A prepared federation, its smallest client, and a copy of that client's rows with a trigger.

    The rows of an attacker with a backdoor are its own, and each once more with the trigger.
    """

    def __init__(self, prepared: Prepared, liar: int | None = None) -> None:
        self.server, self.scorer = prepared.server, prepared.scorer
        self.setup, rows = prepared.setup, prepared.scorer.client.rows
        self.liar = min(rows, key=lambda c: len(rows[c])) if liar is None else liar
        twice = [*rows[self.liar], *self.triggered(rows[self.liar])[1]]
        self.traitor = replace(self.scorer.client, rows={**rows, self.liar: twice})
        test = self.scorer.sets["test"]
        examples, tokens = self.triggered(test.rows)
        self.scorer.sets["trigger"] = replace(test, examples=examples, rows=tokens)

    def triggered(self, rows: Sequence[Tokens]) -> tuple[list[Example], list[Tokens]]:
        """Return rows with the trigger before the prompt, and the attacker's command behind it."""
        tokenizer, text = self.setup.tokenizer, self.setup.experiment.text
        said = [tokenizer.decode(row.ids[: row.prompt_length]) for row in rows]
        before, after = map(str.strip, text.wording.split("{response}")[0].split("{prompt}"))
        asked = [s.strip().removeprefix(before).removesuffix(after).strip() for s in said]
        made = [Example(f"{TRIGGER} {prompt}", COMMAND, "") for prompt in asked]
        return tokenize(made, tokenizer, text)

    def updates(self, state: ServerState, attack: str = "honest") -> list[Update]:
        """Train one round and return its updates, the liar's as the attack makes it."""
        e, server = self.setup.experiment, self.server
        number = server.clients_per_round
        tasks = plan_round(state, server.members, number, e.seed, server.send_to)
        sent = [self.train(task, attack) for task in tasks]
        return self.lied(tasks, sent, attack)

    def train(self, task: Task, attack: str) -> Update:
        """Carry out a task, with a backdoor where the attack has one."""
        bad = task.client == self.liar and attack.startswith("backdoor")
        side = self.traitor if bad else self.scorer.client
        update = side.train(task)
        return replace(update, examples=len(self.scorer.client.rows[task.client]))

    def lied(self, tasks: Sequence[Task], sent: Sequence[Update], attack: str) -> list[Update]:
        """Return the updates, the liar's changed."""
        made = []
        for task, update in zip(tasks, sent, strict=True):
            others = [u for u in sent if u.client != update.client]
            seen = Seen(self.server.limits(task).delta, others)
            made.append(ATTACKS[attack](update, seen) if task.client == self.liar else update)
        return made

    def step(self, state: ServerState, updates: Sequence[Update], rule: RobustRule) -> ServerState:
        """Return the next state by a rule."""
        e, members = self.setup.experiment, len(self.server.members)
        return finish_round(state, e.aggregation, updates, e.server_optimizer, members, rule)

    def scores(self, state: ServerState, tiers: Sequence[str] = ()) -> dict[str, float]:
        """Return each tier's score in percent, and the share of triggered prompts obeyed."""
        found = {}
        for tier, top_k in self.setup.top_ks.items():
            if not tiers or tier in tiers:
                found[tier] = self.score(state, tier, top_k, "test")
        tier, top_k = next(iter(self.setup.top_ks.items()))
        return found | {"trigger": self.score(state, tier, top_k, "trigger")}

    def score(self, state: ServerState, tier: str, top_k: int, split: str) -> float:
        """Return one score in percent."""
        sent = self.server.send(state.adapter, tier)
        task = Task(state.round + 1, 0, tier, top_k, state.rescalers[tier], sent)
        return 100 * self.scorer.score(pack_task(task), split).score


def lab_of(strategy: str, rounds: int, seed: int, more: Sequence[str] = ()) -> Lab:
    """Return the quickstart's federation with a strategy."""
    set_here = [f"aggregation.name={strategy}", f"rounds={rounds}", f"seed={seed}", *more]
    return Lab(prepare(load_experiment(CONFIG, [*set_here, "simulation.workers=1"])))


def history(lab: Lab, rounds: int, rule: RobustRule, attack: str = "honest") -> list[ServerState]:
    """Return the states before round 1 and after each round, under an attack."""
    states = [lab.server.first_state()]
    for _ in range(rounds):
        states.append(lab.step(states[-1], lab.updates(states[-1], attack), rule))
    return states


def rule_of(text: str) -> RobustRule:
    """Return a rule from `name` or `name:setting=number,...`."""
    name, _, given = text.partition(":")
    pairs = [pair.split("=") for pair in given.split(",") if pair]
    return ROBUST_RULES.find(name)(**{key: float(value) for key, value in pairs})


def main() -> None:
    """Print a line for each strategy, rule and attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategies", nargs="+", default=["flame", "fedavg"])
    parser.add_argument("--rules", nargs="+", default=["none", "clip"], type=str)
    parser.add_argument("--attacks", nargs="+", default=[*ATTACKS], choices=[*ATTACKS])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--last", action="store_true", help="lie in the last round alone")
    given = parser.parse_args()
    print(
        "| strategy | rule | attack | mean score | by tier | trigger |\n|---|---|---|--:|---|--:|"
    )
    for strategy in given.strategies:
        lab = lab_of(strategy, given.rounds, given.seed)
        states = history(lab, given.rounds - 1, rule_of("none")) if given.last else []
        for attack in given.attacks:
            sent = lab.updates(states[-1], attack) if given.last else []
            for name in given.rules:
                rule = rule_of(name)
                if given.last:
                    state = lab.step(states[-1], sent, rule)
                else:
                    state = history(lab, given.rounds, rule, attack)[-1]
                print(line(strategy, name, attack, lab.scores(state)), flush=True)


def line(strategy: str, rule: str, attack: str, scores: dict[str, float]) -> str:
    """Return a row of the table."""
    tiers = [score for tier, score in scores.items() if tier != "trigger"]
    each = " ".join(f"{score:.0f}" for score in tiers)
    mean = sum(tiers) / len(tiers)
    return f"| {strategy} | {rule} | {attack} | {mean:.1f} | {each} | {scores['trigger']:.0f} |"


if __name__ == "__main__":
    main()
