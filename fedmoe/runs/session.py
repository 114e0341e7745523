"""One run from its experiment to its report: prepare, loop, evaluate, write everything down.

Where clients train is the transport's affair, what is shown meanwhile the display's: `simulations`
and `server` bring their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from fedmoe.config import Experiment
from fedmoe.config.faults import NO_FAULTS, parse_faults
from fedmoe.errors import FedMoEError
from fedmoe.evaluation.evaluate import Evaluation, by_tier, evaluate
from fedmoe.messages.codec import Failure, Message, Task, Update, pack_task
from fedmoe.models.pretrained_gating import unlike_gating
from fedmoe.report import write_report
from fedmoe.rounds import Observer, Plan, ServerState, run_rounds
from fedmoe.runs.asynchronous import Buffered, buffered_of
from fedmoe.runs.checkpoint import remove_checkpoints, write_checkpoint
from fedmoe.runs.injection import Faulty, ServerKiller
from fedmoe.runs.prepare import prepare
from fedmoe.runs.prepared import Prepared
from fedmoe.runs.recorder import Recorder
from fedmoe.runs.resume import Found, Resume, find
from fedmoe.runs.workers import Watch, Workers

MakeWorkers = Callable[[Prepared, Sequence[Watch]], Workers]
"""Makes the workers of a run, which tell the watches what they notice."""


class Display(Observer, Watch, Protocol):
    """Shows a run while it runs."""

    def evaluated(self, evaluations: Sequence[Evaluation], /) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


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


def run(
    experiment: Experiment,
    display: Display,
    make_workers: MakeWorkers,
    resume: Resume = "no",
    *,
    nodes_code: Path | None = None,
) -> Path:
    """Run an experiment to its end and return its folder.

    With `resume` a run of this name that was interrupted goes on after its last finished round, and
    ends with the bits that it would have had; one that has ended is not repeated. `nodes_code` is
    the folder of what clients run on machines of their own.

    Raises:
        FedMoEError: see `prepare` and `run_rounds`, and `resume.find`; what was finished by then
            stays readable.
    """
    started, phases = time.monotonic(), Phases()
    with phases("load"):
        prepared = prepare(experiment, on_nodes=nodes_code is not None)
        if said := unlike_gating(experiment.gating, experiment.model.path):
            print(f"fedmoe: warning: {said}", file=sys.stderr, flush=True)
        prepared = replace(prepared, nodes_code=nodes_code)
    with find(prepared, resume) as found:
        if not found.ended:
            prepared = replace(prepared, state_folder=found.folder / "clients", run_id=found.run_id)
            _carry_on(prepared, found, display, make_workers, phases, started)
        write_report(found.folder)
    return found.folder


def _carry_on(
    prepared: Prepared,
    found: Found,
    display: Display,
    make_workers: MakeWorkers,
    phases: Phases,
    started: float,
) -> None:
    """Run the rounds that are left, from the checkpoint or from the start."""
    buffered = buffered_of(prepared)
    if buffered and found.checkpoint:
        buffered.skip(found.checkpoint.state, found.checkpoint.versions)
    clock = (lambda: buffered.clock) if buffered else None
    recorder = Recorder(found.folder, prepared, clock, found.checkpoint)
    watches = [recorder, display]
    workers, faults = make_workers(prepared, watches), parse_faults(prepared.experiment.faults)
    if faults != NO_FAULTS:
        workers = Faulty(workers, faults, prepared, watches)
    try:
        with display:
            keeper = Keeper(found, recorder, buffered, started)
            evaluator = Evaluator(prepared, workers, recorder, display, phases)
            state = _loop(prepared, workers, recorder, display, evaluator, keeper)
        seconds = time.monotonic() - started
        phases.seconds["training"] = seconds - sum(phases.seconds.values())
        share = phases.seconds["training"] / seconds
        recorder.ended(state, keeper.seconds(), phases.seconds, share)
        remove_checkpoints(found.folder)
    except BaseException:
        with suppress(Exception):  # what stopped the run must be seen, not a fault of its report
            write_report(found.folder)
        raise
    finally:
        workers.close()
        recorder.close()


def _loop(
    prepared: Prepared,
    workers: Workers,
    recorder: Recorder,
    display: Display,
    evaluator: Evaluator,
    keeper: Keeper,
) -> ServerState:
    e = prepared.experiment
    if keeper.found.checkpoint:
        state = keeper.found.checkpoint.state
    else:
        state = prepared.first_state()
        evaluator.measure(state, "test")
        keeper.finished(state)
    state = run_rounds(
        state,
        prepared.members,
        e.aggregation,
        workers,
        # The one that may kill this process comes when all that it needs is written down.
        [recorder, display, evaluator, keeper, ServerKiller(parse_faults(e.faults))],
        num_rounds=e.rounds,
        clients_per_round=e.clients_per_round or len(prepared.members),
        seed=e.seed,
        optimizer=e.server_optimizer,
        send=prepared.send_to,
        plan=keeper.plan,
        quorum=e.quorum,
    )
    if not e.rounds:
        return state  # scored above
    if not recorder.by_round.any():
        raise FedMoEError(
            f"no round of {e.rounds} had a client: nothing was aggregated; raise the devices' "
            "availability, or `rounds`"
        )
    evaluator.measure(state, "test")
    return state


class Keeper:
    """An observer that writes a checkpoint after every round, when all others have been told."""

    def __init__(
        self, found: Found, recorder: Recorder, buffered: Buffered | None, started: float
    ) -> None:
        self.found, self.recorder, self.buffered, self.started = found, recorder, buffered, started
        self.plan: Plan | None = buffered.plan if buffered else None
        self.before = found.checkpoint.about["seconds"] if found.checkpoint else 0.0

    def planned(self, tasks: Sequence[Task]) -> None: ...
    def answered(self, task: Task, answer: Update | Failure) -> None: ...

    def finished(self, state: ServerState) -> None:
        versions = dict(self.buffered.states) if self.buffered else {}
        checkpoint = self.recorder.checkpoint(state, versions)
        checkpoint.about.update(seconds=self.seconds(), identity=self.found.identity)
        write_checkpoint(self.found.folder, checkpoint)

    def seconds(self) -> float:
        """Wall seconds of the run, those before it was interrupted included."""
        return self.before + time.monotonic() - self.started


class Evaluator:
    """An observer that scores the global adapter, the tiers shared out over the workers."""

    def __init__(
        self,
        prepared: Prepared,
        workers: Workers,
        recorder: Recorder,
        display: Display,
        phases: Phases,
    ) -> None:
        self.prepared, self.workers, self.phases = prepared, workers, phases
        self.recorder, self.display = recorder, display

    def planned(self, tasks: Sequence[Task]) -> None: ...
    def answered(self, task: Task, answer: Update | Failure) -> None: ...

    def finished(self, state: ServerState) -> None:
        e = self.prepared.experiment
        every = e.evaluation.every
        if every and (state.round % every == 0 or state.round == e.rounds):
            self.measure(state, "validation")

    def measure(self, state: ServerState, split: str) -> None:
        """Score `state` on one split at every tier, and tell the recorder and the display."""
        with self.phases("evaluation"):
            results = by_tier(self.workers.map(_evaluate, self._jobs(state, split)))
        self.recorder.evaluated(state, results)
        self.display.evaluated(results)

    def _jobs(self, state: ServerState, split: str) -> Iterator[tuple[Message, str]]:
        """What a tier's clients would be sent for the next round, and the set to score it on.

        One job a tier, or one a client where each has a part of its own.
        """
        for tier, top_k in self.prepared.tiers.items():
            adapter = self.prepared.send(state.adapter, tier)
            for client in self.prepared.scored(tier):
                rescaler = state.rescalers[tier]
                task = Task(state.round + 1, client, tier, top_k, rescaler, adapter)
                yield pack_task(task), split


def _evaluate(prepared: Prepared, job: tuple[Message, str]) -> Evaluation:
    message, split = job
    task = prepared.read_task(message)
    adapter = prepared.deployed_adapter(task)
    prepared.configure(task, adapter)
    tiers = {task.tier: (task.top_k, task.rescaler)}
    settings = prepared.experiment.evaluation
    (result,) = evaluate(
        prepared.model,
        prepared.tokenizer,
        prepared.sets[split],
        adapter,
        tiers,
        settings,
        task.round - 1,
    )
    if prepared.experiment.aggregation.personal:
        return replace(result, by_client={task.client: result.by_label})
    return result
