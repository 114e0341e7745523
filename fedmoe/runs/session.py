"""One run from its experiment to its report: prepare, loop, evaluate, write everything down.

Where clients train is the transport's affair, what is shown meanwhile the display's: `simulations`
and `server` bring their own.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.config.faults import NO_FAULTS, parse_faults
from fedmoe.errors import FedMoEError, FedMoEWarning
from fedmoe.models.pretrained_gating import unlike_gating
from fedmoe.report import write_report
from fedmoe.rounds import Observer, run_rounds
from fedmoe.runs.asynchronous import buffered_of, goes_live
from fedmoe.runs.base_scores import scores_file
from fedmoe.runs.checkpoint import remove_checkpoints, write_checkpoint
from fedmoe.runs.display import Display
from fedmoe.runs.evaluator import Evaluator
from fedmoe.runs.hidden import sight_of
from fedmoe.runs.injection import Faulty, ServerKiller
from fedmoe.runs.local.in_process import make_transport
from fedmoe.runs.local.pool import sweep
from fedmoe.runs.prepare import prepare
from fedmoe.runs.recorder import Recorder
from fedmoe.runs.resume import find
from fedmoe.runs.root import root_of
from fedmoe.runs.roster import roster_of
from fedmoe.runs.scorer import Scorer
from fedmoe.runs.server_side import ServerSide
from fedmoe.runs.workers import Watch, Workers
from fedmoe.system.files import expanded
from fedmoe.training.steps import Steps

if TYPE_CHECKING:
    from fedmoe.config import Experiment
    from fedmoe.rounds import Plan, ServerState
    from fedmoe.runs.asynchronous import Buffered
    from fedmoe.runs.checkpoint import Checkpoint
    from fedmoe.runs.resume import Found, Resume

MakeWorkers = Callable[[ServerSide, Scorer, Sequence[Watch]], Workers]
"""Makes the workers of a run, which tell the watches what they notice."""


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
    display: Display | None = None,
    make_workers: MakeWorkers = make_transport,
    resume: Resume = "no",
    *,
    nodes_code: Path | None = None,
) -> Path:
    """Run an experiment to its end and return its folder.

    With `resume` an interrupted run of this name continues after its last finished round, and ends
    with the same adapter, bit for bit on one kind of processor; one that has ended is not repeated.

    Args:
        make_workers: makes those who train and score; by default, on this machine.
        nodes_code: the folder of the code that clients run on their own machines.

    Raises:
        FedMoEError: see `prepare`, `run_rounds` and `resume.find`; what was finished by then stays
            readable.
    """
    started, phases, display = time.monotonic(), Phases(), display or Display()
    with phases("load"), display.loading(experiment):
        on_nodes = nodes_code is not None
        prepared = prepare(experiment, on_nodes=on_nodes, holds_rows=not on_nodes)
    server = replace(prepared.server, nodes_code=nodes_code)
    session = Session(server, prepared.scorer, make_workers, display, phases, started)
    return session.run(resume)


@dataclass(frozen=True, eq=False)
class Session:
    """A prepared run, and those who carry it out, show it and write it down."""

    server: ServerSide
    scorer: Scorer
    make_workers: MakeWorkers
    display: Display
    phases: Phases
    started: float
    """When it began, on the monotonic clock."""

    def run(self, resume: Resume) -> Path:
        """Run all rounds that are left, write the report and return the run's folder."""
        e = self.server.setup.experiment
        if said := unlike_gating(e.gating, e.model.path):
            warnings.warn(said, FedMoEWarning, stacklevel=2)
        sweep(expanded(e.simulation.folder))
        with find(self.server, resume) as found:
            if not found.ended:
                steps = Steps(1 + max((m.client for m in self.server.members), default=-1))
                self.display.follow(steps)
                folder = found.folder / "clients"
                client = replace(self.scorer.client, state_folder=folder, told=steps)
                server = replace(self.server, run_id=found.run_id)
                scorer = replace(self.scorer, client=client)
                replace(self, server=server, scorer=scorer)._continue(found)
            write_report(found.folder)
        return found.folder

    def _continue(self, found: Found) -> None:
        """Run the rounds that are left, from the checkpoint or from the start."""
        rounds = found.checkpoint.state.round if found.checkpoint else 0
        roster = roster_of(self.server.setup, found.records, rounds)
        if roster is not None:
            replace(self, server=replace(self.server, members=roster))._run(found)
        else:
            self._run(found)

    def _run(self, found: Found) -> None:
        recorder = Recorder(found.folder, self.server, found.checkpoint)
        watches = [recorder, self.display]
        workers = self.make_workers(self.server, self.scorer, watches)
        buffered = buffered_of(self.server, workers)
        if buffered and not goes_live(self.server.setup.experiment):
            recorder.clock = lambda: buffered.clock
        faults = parse_faults(self.server.setup.experiment.faults)
        if faults != NO_FAULTS:
            workers = Faulty(workers, faults, self.server, watches)
        keeper = Keeper(found, recorder, buffered, self.started, self.phases)
        evaluator = Evaluator(self.server, workers, recorder, self.display, self.phases)
        try:
            with self.display:
                e = self.server.setup.experiment
                facts, setup = self.server.facts, self.server.setup
                self.display.noted((*setup.notes, *facts.notes, *e.unguarded))
                state = self._loop(workers, recorder, evaluator, keeper)
            seconds, phases = keeper.seconds(), keeper.spent()
            recorder.ended(state, seconds, phases, phases["training"] / seconds)
            remove_checkpoints(found.folder)
        except BaseException:
            with suppress(Exception):  # what stopped the run must be seen, not a report's fault
                recorder.large.close()
                write_report(found.folder)
            raise
        finally:
            workers.close()
            recorder.close()

    def _loop(
        self, workers: Workers, recorder: Recorder, evaluator: Evaluator, keeper: Keeper
    ) -> ServerState:
        server, e = self.server, self.server.setup.experiment
        if server.setup.start:
            self.display.noted(server.setup.start.notes)
        found = keeper.found
        done = found.checkpoint.state.round if found.checkpoint else 0
        sight = sight_of(server, workers, found.records, done, recorder.summed)
        self.display.noted(sight.notes)
        evaluator.choose = sight.choose

        def why_stop() -> str:
            return recorder.why_stop() or sight.why_stop()

        if keeper.found.checkpoint:
            state = keeper.found.checkpoint.state
            keeper.resume(keeper.found.checkpoint)
            self.display.resumed(state.round, keeper.found.records)
        else:
            state = server.first_state()
            evaluator.meet(state)
            test = self.scorer.sets.get("test")
            shared = scores_file(server, found.identity, test, state) if test else None
            evaluator.measure(state, "test", shared)
            keeper.finished(state)
        killer = ServerKiller(parse_faults(e.faults), recorder.large.wait)
        state = run_rounds(
            state,
            server.members,
            sight.aggregator,
            sight.transport,
            # The one that may kill this process comes when all that it needs is written down.
            [sight, recorder, self.display, evaluator, keeper, killer],
            num_rounds=e.rounds,
            clients_per_round=e.clients_per_round or len(server.members),
            seed=e.seed,
            optimizer=e.server_optimizer,
            send=server.send_to,
            plan=evaluator.after_meeting(keeper.plan) if keeper.plan else evaluator.plan,
            quorum=e.quorum,
            updates_per_step=keeper.updates_per_step,
            stop=why_stop,
            shown=sight.shown,
            robust=e.robust_rule,
            root=root_of(server),
        )
        if state.round < e.rounds:
            recorder.stopped(state, reason := why_stop())
            self.display.noted((reason,))
        if not e.rounds:
            return state  # which is scored already
        if not recorder.trained:
            raise FedMoEError(
                f"No client was available in any of the {e.rounds} rounds: nothing was aggregated. "
                "Raise the devices' `availability`, or `rounds`."
            )
        evaluator.measure(state, "test")
        return state


class Keeper(Observer):
    """An observer that has a checkpoint written after every round, when all others were told.

    It is written while the next round trains. A kill before it is whole costs one round more, which
    is done again to the same bits.
    """

    def __init__(
        self,
        found: Found,
        recorder: Recorder,
        buffered: Buffered | None,
        started: float,
        phases: Phases,
    ) -> None:
        self.found, self.recorder, self.buffered, self.started = found, recorder, buffered, started
        self.phases = phases
        self.plan: Plan | None = buffered.plan if buffered else None
        self.updates_per_step = buffered.buffer_size if buffered else None
        about = found.checkpoint.about if found.checkpoint else {}
        self.before, self.phases_before = about.get("seconds", 0.0), about.get("phases", {})

    def finished(self, state: ServerState) -> None:
        versions = dict(self.buffered.states) if self.buffered else {}
        checkpoint = self.recorder.checkpoint(state, versions)
        checkpoint.about.update(seconds=self.seconds(), phases=self.spent())
        checkpoint.about["identity"] = self.found.identity
        if self.buffered:
            checkpoint.about["timeline"] = self.buffered.timeline.position()
        self.recorder.large.add(lambda: write_checkpoint(self.found.folder, checkpoint))
        self.recorder.keep_best(state)
        if self.recorder.server.setup.experiment.privacy:
            self.recorder.large.wait()  # a round that is done again spends epsilon again

    def resume(self, checkpoint: Checkpoint) -> None:
        """Start again who was at work when the checkpoint was written."""
        self.recorder.keep_best(checkpoint.state)
        if self.buffered:
            # A run that is resumed `anyway` may have gone by rounds until then.
            rounds = {"number": 0, "now": checkpoint.about["virtual_clock"], "at_work": ()}
            position = checkpoint.about.get("timeline", rounds)
            self.buffered.resume(checkpoint.state, checkpoint.versions, position)

    def seconds(self) -> float:
        """Wall seconds of the run, those before it was interrupted included."""
        return self.before + time.monotonic() - self.started

    def spent(self) -> dict[str, float]:
        """Wall seconds of the same by phase: what none of the others took went into training."""
        own, before = self.phases.seconds, self.phases_before
        names = [name for name in {**before, **own} if name != "training"]
        phases = {name: own.get(name, 0.0) + before.get(name, 0.0) for name in names}
        return phases | {"training": self.seconds() - sum(phases.values())}
