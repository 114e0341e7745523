"""Scoring the global adapter in a run: in the server's workers, or at the clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedmoe.errors import FedMoEError
from fedmoe.evaluation.evaluate import by_tier
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Task, Update
from fedmoe.rounds import Observer, check_quorum, plan_round
from fedmoe.runs.base_scores import read_scores, write_scores
from fedmoe.runs.own_data import SERVER
from fedmoe.runs.own_scores import chosen, evaluations, gather
from fedmoe.runs.roster import Roster

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fedmoe.adapter import Adapter
    from fedmoe.evaluation.evaluate import Evaluation
    from fedmoe.messages.records import Failure, Message
    from fedmoe.rounds import Choose, Member, Plan, ServerState
    from fedmoe.runs.display import Display
    from fedmoe.runs.recorder import Recorder
    from fedmoe.runs.scorer import Scorer
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.session import Phases
    from fedmoe.runs.workers import Workers


class Evaluator(Observer):
    """An observer that scores the global adapter, the tiers shared out over the workers.

    Where clients hold rows of their own, it looks who is there, and each scores on its own rows.
    """

    def __init__(
        self,
        server: ServerSide,
        workers: Workers,
        recorder: Recorder,
        display: Display,
        phases: Phases,
    ) -> None:
        self.server, self.workers, self.phases = server, workers, phases
        self.recorder, self.display = recorder, display
        self.choose: Choose | None = None
        """Returns who takes part in a round, unless the run's seed draws them."""
        self.roster = server.members if isinstance(server.members, Roster) else None

    def meet(self, state: ServerState) -> None:
        """Look who is there for the next round, where clients come and go."""
        if self.roster is None:
            return
        if attendance := self.roster.meet(state.round + 1, self.workers.present):
            self.recorder.met(attendance)
            self.display.met(attendance)

    def plan(self, state: ServerState) -> list[Task]:
        """Return the next round's tasks, for those who are there."""
        self.meet(state)
        server, e = self.server, self.server.setup.experiment
        members = server.members if self.roster is None else self.roster.here()
        number = e.clients_per_round or len(members)
        return plan_round(state, members, number, e.seed, server.send_to, self.choose)

    def after_meeting(self, plan: Plan) -> Plan:
        """Return the plan of an asynchronous run, for those who are there."""

        def planned(state: ServerState) -> list[Task]:
            self.meet(state)
            return plan(state)

        return planned

    def answered(self, task: Task, answer: Update | Failure) -> None:
        if self.roster is not None and isinstance(answer, Update) and not answer.withheld:
            self.roster.heard(task.client, answer.examples)

    def finished(self, state: ServerState) -> None:
        e = self.server.setup.experiment
        every = e.evaluation.every
        if every and (state.round % every == 0 or state.round == e.rounds):
            self.measure(state, "validation")

    def measure(self, state: ServerState, split: str, shared: Path | None = None) -> None:
        """Score `state` on one split at every tier, and tell the recorder and the display.

        Scores in the file `shared` are taken as they are; else it gets them.
        """
        sent = {t: self.server.send(state.adapter, t) for t in self.server.setup.top_ks}
        with self.phases("evaluation"):
            if shared and (results := read_scores(shared)):
                said = f"the base model was tested by an earlier run: its scores are in {shared}"
                self.display.noted([said])
            elif self.roster is None:
                results = self._here(state, split, sent)
                if shared:
                    write_scores(shared, results)
            else:
                results = [*self._at_clients(state, split, sent)]
                if getattr(self.server.setup.experiment.data, "server_test", ""):
                    results += self.workers.map(_evaluate, self._jobs(state, SERVER, sent))
        self.recorder.evaluated(state, results)
        self.display.evaluated(results)

    def _here(
        self, state: ServerState, split: str, sent: Mapping[str, Adapter]
    ) -> list[Evaluation]:
        """Return the scores at each tier, and tell the display how many are done."""
        what = "testing" if split == "test" else "validating"
        what = what if state.round else f"{what} the base model"
        total = sum(len(self.server.scored(tier)) for tier in sent)
        self.display.begun(what, 0, total)
        found = []
        for evaluation in self.workers.map(_evaluate, self._jobs(state, split, sent)):
            found.append(evaluation)
            self.display.begun(what, len(found), total)
        return by_tier(found)

    def _jobs(
        self, state: ServerState, split: str, sent: Mapping[str, Adapter]
    ) -> Iterator[tuple[Message, str]]:
        """Yield what a tier's clients would be sent for the next round, and the split to score.

        One job a tier, or one a client where each has a part of its own.
        """
        for tier in sent:
            for client in [0] if split == SERVER else self.server.scored(tier):
                yield pack_task(self._task(state, client, tier, sent)), split

    def _at_clients(
        self, state: ServerState, split: str, sent: Mapping[str, Adapter]
    ) -> Iterator[Evaluation]:
        """Yield the scores of the clients on their own rows, at each tier."""
        assert self.roster is not None
        e = self.server.setup.experiment
        members = chosen(self.roster.present(), e.evaluation.clients, e.seed)
        for tier in sent if e.evaluation.every_tier else [""]:
            yield from self._at_tier(state, split, sent, members, tier)

    def _at_tier(
        self,
        state: ServerState,
        split: str,
        sent: Mapping[str, Adapter],
        members: list[Member],
        tier: str,
    ) -> Iterator[Evaluation]:
        """Yield the clients' scores at a tier's k; at each client's own where no tier is given."""
        tasks = [self._task(state, m.client, tier or m.tier, sent, m.name) for m in members]
        answers = gather(tasks, self.workers.score(tasks, split))
        task_of = {task.client: task for task in tasks}
        for failure in answers.failures:
            self.recorder.unscored(failure, split)
            self.display.unscored(task_of[failure.client], failure, split)
        if withheld := [task for task, scores in answers.pairs if scores.withheld]:
            self.recorder.withheld(withheld, split)
            self.display.withheld(withheld, split)
        if tasks and not answers.pairs:
            raise FedMoEError(
                f"after round {state.round}: no client gave scores on its {split} rows. The first "
                f"reason: {answers.failures[0].reason}"
            )
        quorum = self.server.setup.experiment.quorum
        check_quorum(state.round, len(tasks), answers.failures, quorum)
        rows = {t.client: (t.name, s.rows) for t, s in answers.pairs if s.rows}
        self.recorder.accounted(rows)
        self.display.accounted(rows)
        yield from evaluations(answers, split)

    def _task(
        self,
        state: ServerState,
        client: int,
        tier: str,
        sent: Mapping[str, Adapter],
        name: str = "",
    ) -> Task:
        top_k, rescaler = self.server.setup.top_ks[tier], state.rescalers[tier]
        return Task(state.round + 1, client, tier, top_k, rescaler, sent[tier], name)


def _evaluate(scorer: Scorer, job: tuple[Message, str]) -> Evaluation:
    return scorer.score(*job)
