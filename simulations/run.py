"""`fedmoe run`: prepare, loop, evaluate, write everything down, report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedmoe.config import Experiment
from fedmoe.evaluation.evaluate import Evaluation, evaluate
from fedmoe.prepare import Prepared, prepare
from fedmoe.record import Recorder, new_folder
from fedmoe.report import write_report
from fedmoe.rounds import ServerState, run_rounds
from fedmoe.wire import Message, Task, pack_task, unpack_task
from simulations.live import LiveTable
from simulations.transports import Transport, make_transport


class Phases:
    """Wall seconds by phase; phases do not overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def run(experiment: Experiment, live: LiveTable) -> Path:
    """Run an experiment to its end and return its folder.

    Raises:
        FedMoEError: see `prepare` and `run_rounds`; what was finished by then stays readable.
    """
    started, phases = time.monotonic(), Phases()
    with phases("load"):
        prepared = prepare(experiment)
    folder = new_folder(Path(experiment.simulation.folder), experiment.name)
    recorder = Recorder(folder, prepared)
    transport = make_transport(prepared)
    try:
        with live:
            evaluator = Evaluator(prepared, transport, recorder, live, phases)
            state = _loop(prepared, transport, recorder, live, evaluator)
        seconds = time.monotonic() - started
        phases.seconds["training"] = seconds - sum(phases.seconds.values())
        recorder.ended(state, seconds, phases.seconds, phases.seconds["training"] / seconds)
    finally:
        transport.close()
        write_report(folder)
    return folder


def _loop(
    prepared: Prepared, transport: Transport, recorder: Recorder, live: LiveTable, evaluator: Evaluator
) -> ServerState:
    e = prepared.experiment
    state = prepared.first_state()
    evaluator.measure(state, "test")
    state = run_rounds(
        state, prepared.members, e.aggregation, transport, [recorder, live, evaluator],
        num_rounds=e.rounds, clients_per_round=e.clients_per_round or len(prepared.members),
        seed=e.seed,
    )  # fmt: skip
    evaluator.measure(state, "test")
    return state


class Evaluator:
    """An observer that scores the global adapter, the tiers shared out over the transport."""

    def __init__(
        self, prepared: Prepared, transport: Transport, recorder: Recorder, live: LiveTable, phases: Phases
    ) -> None:
        self.prepared, self.transport, self.phases = prepared, transport, phases
        self.recorder, self.live = recorder, live

    def planned(self, tasks: Sequence) -> None: ...
    def answered(self, task: object, answer: object) -> None: ...

    def finished(self, state: ServerState) -> None:
        every = self.prepared.experiment.evaluation.every
        if every and state.round % every == 0:
            self.measure(state, "validation")

    def measure(self, state: ServerState, split: str) -> None:
        """Score `state` on one split at every tier, and tell the recorder and the table."""
        with self.phases("evaluation"):
            results = list(self.transport.map(_evaluate, self._jobs(state, split)))
        self.recorder.evaluated(state, results)
        self.live.evaluated(results)

    def _jobs(self, state: ServerState, split: str) -> Iterator[tuple[Message, str]]:
        """One job a tier: what its clients would be sent, and the set to score it on."""
        for tier, top_k in self.prepared.tiers.items():
            task = Task(state.round, 0, tier, top_k, state.rescalers[tier], state.adapter)
            yield pack_task(task), split


def _evaluate(prepared: Prepared, job: tuple[Message, str]) -> Evaluation:
    message, split = job
    task = unpack_task(message, prepared.model.layout)
    tiers = {task.tier: (task.top_k, task.rescaler)}
    settings = prepared.experiment.evaluation
    (result,) = evaluate(
        prepared.model, prepared.tokenizer, prepared.sets[split], task.adapter, tiers, settings, task.round
    )
    return result
