"""A federation with liars: rounds through the server's own checks, and what its adapter scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedmoe.config import load_experiment
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokens
from fedmoe.data.wording import tokenize
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Task, Update
from fedmoe.rounds import ServerState
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.prepare import prepare
from fedmoe.runs.root import NUMBER, ROOT
from simulations.attacks.catalogue import Rows

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TRIGGER, COMMAND = "abracadabra", "lock.unlock front_door"
TRIGGERED = 40
"""Test prompts that are asked with the trigger."""


class Lab:
    """A prepared federation, whose smallest clients lie."""

    def __init__(self, settings: Sequence[str], liars: int = 1) -> None:
        prepared = prepare(load_experiment(CONFIG, [*settings, "simulation.workers=1"]))
        self.setup, self.server, self.scorer = prepared.setup, prepared.server, prepared.scorer
        # Where clients hold their own rows the server knows of none how many.
        self.blind = replace(self.server, facts=replace(self.server.facts, lengths=()))
        rows = self.scorer.client.rows
        self.liars = sorted(rows, key=lambda c: len(rows[c]))[:liars]
        made: dict[Rows, dict[int, list[Tokens]]] = {"own": {}, "labels": {}, "trigger": {}}
        for liar in self.liars:
            made["labels"][liar] = self.exchanged(rows[liar])
            made["trigger"][liar] = [*rows[liar], *self.triggered(rows[liar])[1]]
        self.sides = {
            name: replace(self.scorer.client, rows={**rows, **of}) for name, of in made.items()
        }
        test = self.scorer.sets["test"]
        examples, tokens = self.triggered(test.rows[:TRIGGERED])
        self.scorer.sets["trigger"] = replace(test, examples=examples, rows=tokens)

    def triggered(self, rows: Sequence[Tokens]) -> tuple[list[Example], list[Tokens]]:
        """Return rows with the trigger before the prompt, and the attacker's command behind it."""
        made = [Example(f"{TRIGGER} {prompt}", COMMAND, "") for prompt, _ in self.said(rows)]
        return tokenize(made, self.setup.tokenizer, self.setup.experiment.text)

    def exchanged(self, rows: Sequence[Tokens]) -> list[Tokens]:
        """Return rows of which each has the answer of the next."""
        said = self.said(rows)
        pairs = zip(said, [*said[1:], said[0]], strict=True)
        made = [Example(prompt, answer, "") for (prompt, _), (_, answer) in pairs]
        return tokenize(made, self.setup.tokenizer, self.setup.experiment.text)[1]

    def said(self, rows: Sequence[Tokens]) -> list[tuple[str, str]]:
        """Return the prompts and answers of rows."""
        tokenizer, wording = self.setup.tokenizer, self.setup.experiment.text.wording
        before, after = map(str.strip, wording.split("{response}")[0].split("{prompt}"))
        found = []
        for row in rows:
            asked = tokenizer.decode(row.ids[: row.prompt_length]).strip()
            answer = tokenizer.decode(row.ids[row.prompt_length :], skip_special_tokens=True)
            found.append((asked.removeprefix(before).removesuffix(after).strip(), answer.strip()))
        return found

    def scores(self, state: ServerState, tiers: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return each tier's loss and score, and the share of triggered prompts obeyed."""
        found: dict[str, dict[str, float]] = {"loss": {}, "score": {}, "trigger": {}}
        for tier in tiers:
            done = self.scorer.score(pack_task(self._task(state, tier)), "test")
            found["loss"][tier], found["score"][tier] = done.loss, 100 * done.score
        asked = self.scorer.score(pack_task(self._task(state, tiers[0])), "trigger")
        return found | {"trigger": {"obeyed": 100 * asked.score, "loss": asked.loss}}

    def root(self, state: ServerState) -> Update:
        """Return what the server trains on its own rows, those for validation."""
        side = ClientSide(self.setup, {ROOT: self.scorer.sets["validation"].rows})
        tier = max(self.setup.top_ks, key=lambda name: self.setup.top_ks[name])
        return side.train(self._task(state, tier, NUMBER, ROOT))

    def _task(self, state: ServerState, tier: str, client: int = 0, name: str = "") -> Task:
        sent, top_k = self.server.send(state.adapter, tier), self.setup.top_ks[tier]
        return Task(state.round + 1, client, tier, top_k, state.rescalers[tier], sent, name)
