"""One round with liars, through the server's own checks and a rule, and what both did."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedmoe.aggregation import RobustRule
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.robust.geometry import moves_of
from fedmoe.aggregation.robust.guarded import Guarded
from fedmoe.aggregation.robust.judgement import Judgement
from fedmoe.aggregation.robust.terms import Terms
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update
from fedmoe.messages.records import Task, Update
from fedmoe.rounds import ServerState, finish_round, plan_round
from simulations.attacks.catalogue import Attack, Rows
from simulations.attacks.lies import Seen, honest

if TYPE_CHECKING:
    from simulations.attacks.lab import Lab


Known = dict[tuple[int, Rows], Update]
"""Updates by client, -1 the server, and the rows that it trained on."""


@dataclass
class Told:
    """What checks and rules did over some rounds."""

    refused: list[str] = field(default_factory=list)
    """Reasons for which a liar's update was refused."""
    honest_refused: int = 0
    trained: int = 0
    touched: int = 0
    """Parts of honest updates that were clipped, or whose weight was capped."""
    left_out: int = 0
    """Parts of honest updates that a rule gave no weight."""
    lies: int = 0
    caught: int = 0
    """Lies that passed the checks, and that a rule gave no weight at all."""


class Round:
    """One round from a state: every update is trained once, whatever is then made of it."""

    def __init__(self, lab: Lab, state: ServerState, known: Known) -> None:
        """Begin a round; `known` has what was trained from this state before, and gets the rest."""
        self.lab, self.state, self.known = lab, state, known
        server, seed = lab.server, lab.setup.experiment.seed
        number = server.clients_per_round
        self.tasks = plan_round(state, server.members, number, seed, server.send_to)

    def trained(self, task: Task, rows: Rows) -> Update:
        """Return what a client that trains on these rows would send."""
        if (key := (task.client, rows)) not in self.known:
            update = self.lab.sides[rows].train(task)
            held = len(self.lab.sides["own"].rows[task.client])
            self.known[key] = replace(update, examples=held)
        return self.known[key]

    def root(self) -> Update:
        """Return the update of the server's own round, for a rule that trusts its rows."""
        if (key := (-1, "own")) not in self.known:
            self.known[key] = self.lab.root(self.state)
        return self.known[key]

    def answers(self, attack: Attack, told: Told) -> list[Update]:
        """Return what the server takes of the round's updates, where liars attack."""
        lab, taken = self.lab, []
        server = lab.blind if attack.own else lab.server
        liars = {*lab.liars} if (attack.make, attack.rows) != (honest, "own") else set()
        others = [self.trained(t, "own") for t in self.tasks if t.client not in liars]
        for task in self.tasks:
            update, lies = self.trained(task, "own"), task.client in liars
            if lies and not attack.make:
                continue
            if lies and attack.make:
                seen = Seen(server.limits(task, update.examples), others)
                update = attack.make(self.trained(task, attack.rows), seen)
                told.lies += 1
            try:
                taken.append(server.read(pack_update(update, lab.setup.experiment.upload), task))
            except WireError as error:
                told.honest_refused += not lies
                if lies:
                    told.refused.append(str(error)[:200])
        return taken

    def after(self, strategy: Mean, rule: RobustRule, attack: Attack, told: Told) -> ServerState:
        """Return the next state by a strategy and a rule."""
        e, number = self.lab.setup.experiment, len(self.lab.server.members)
        sent, state = self.answers(attack, told), self.state
        liars = {*self.lab.liars} if attack.make is not honest or attack.rows != "own" else set()

        def judged(judgement: Judgement) -> None:
            for verdict in judgement.clients:
                if verdict.client not in liars:
                    told.trained += verdict.trained
                    told.left_out += verdict.refused
                else:
                    told.caught += verdict.refused == verdict.trained

        own = self.root() if rule.withstands == "root" else None
        if isinstance(rule, Guarded):
            terms = Terms.of(strategy, state.adapter, sent, own)
            choice = rule.guard(terms, [moves_of(state.adapter, u.delta) for u in sent])
            lower = (choice.factors < 1) | (choice.weights < terms.weights)
            for i, update in enumerate(sent):
                told.touched += int((lower[i] & terms.used[i]).sum()) * (update.client not in liars)
        root = (lambda state: own) if own else None
        return finish_round(state, strategy, sent, e.server_optimizer, number, rule, root, judged)
