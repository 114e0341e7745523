"""The library's way in from Python: whole runs by a call, and a federation round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.aggregation import FedAvg
from fedmoe.aggregation.strategy import Strategy
from fedmoe.budget import Levels, Tier
from fedmoe.config import Experiment, load_experiment
from fedmoe.data.memory import Memory
from fedmoe.data.partition import Given
from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.evaluation.evaluate import Evaluation, by_tier
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.rounds import ServerState, finish_round, plan_round
from fedmoe.runs import session
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import Prepared, prepare
from fedmoe.runs.resume import Resume
from fedmoe.runs.root import root_of
from fedmoe.system.files import expanded
from fedmoe.training.local_client import LocalStep
from fedmoe.training.settings import Training

if TYPE_CHECKING:
    from fedmoe.export.exported import Exported
    from fedmoe.export.finished import RunResults


def run(
    config: Path | str | Experiment,
    overrides: Sequence[str] = (),
    *,
    resume: Resume = "no",
    display: session.Display | None = None,
) -> RunResults:
    """Run an experiment to its end and return its results.

    Args:
        config: a YAML file, or an experiment made in Python.
        overrides: dotted settings in place of the file's, such as `rounds=3`.
        resume: `auto` continues an interrupted run of this name, if nothing of it has changed;
            `anyway` continues it even then.
        display: shows the run while it runs; nothing is shown without one.

    Raises:
        FedMoEError: whatever cannot be done as requested; what was finished stays readable.

    Example:
        >>> import fedmoe
        >>> results = fedmoe.run("configs/quickstart.yaml", ["rounds=3"])  # doctest: +SKIP
        >>> results.scores["lowest"]  # doctest: +SKIP
        0.08
    """
    if not isinstance(config, Experiment):
        config = load_experiment(config, overrides)
    elif overrides:
        raise FedMoEError("overrides are for a YAML file; use dataclasses.replace instead")
    folder = session.run(config, display, resume=resume)
    from fedmoe.export.finished import RunResults  # with it PEFT, which takes a second

    return RunResults(folder)


def open_run(folder: Path | str) -> RunResults:
    """Return the results of a run from its folder; the run may still be at work.

    Raises:
        FedMoEError: the folder is not a run's.

    Example:
        >>> import fedmoe
        >>> fedmoe.open_run("nowhere")
        Traceback (most recent call last):
        fedmoe.errors.FedMoEError: nowhere is not the folder of a run: it has no ledger.jsonl
    """
    from fedmoe.export.finished import RunResults

    path = expanded(folder)
    if not (path / "ledger.jsonl").is_file():
        raise FedMoEError(f"{path} is not the folder of a run: it has no ledger.jsonl")
    return RunResults(path)


@dataclass(frozen=True)
class Client:
    """A client of a federation in memory.

    Example:
        >>> import fedmoe
        >>> site = fedmoe.Client([("turn on the lamp", "light.on lamp")], tier="low", name="site-0")
        >>> site.tier
        'low'
    """

    rows: Sequence[Any]
    """`(prompt, response)` pairs, mappings of columns, or `data.Example`s."""
    tier: str = ""
    """Its budget tier; the federation's first where it is empty."""
    name: str = ""
    """Its name in results; `client-<number>` where it is empty."""


@dataclass(frozen=True)
class Evaluations:
    """The global adapter's scores at every tier."""

    round: int
    by_tier: dict[str, Evaluation]

    @property
    def scores(self) -> dict[str, float]:
        """Each tier's score, from 0 to 1."""
        return {tier: found.score for tier, found in self.by_tier.items()}

    @property
    def losses(self) -> dict[str, float]:
        """Each tier's loss, in nats per response token."""
        return {tier: found.loss for tier, found in self.by_tier.items()}


class Federation:
    """Clients in memory that fine-tune one sparse MoE model, round by round.

    A round is a value: `round` takes a state and returns the next one, with the updates that went
    into it. The same state and seed give the same next state, bit for bit on one kind of processor.

    Example:
        >>> import fedmoe as fm
        >>> rows = [(f"say {word}", word) for word in ("yes", "no", "left", "right", "up", "down")]
        >>> clients = [fm.Client(rows[:2], tier="high"), fm.Client(rows[2:4], tier="low")]
        >>> tiers = {"high": fm.Tier(top_k=2), "low": fm.Tier(top_k=1)}
        >>> training = fm.Training(steps=1, batch_size=2)
        >>> held_out = {"validation": rows[4:5], "test": rows[5:]}
        >>> fed = fm.Federation("mini", clients, tiers=tiers, training=training, **held_out)
        >>> state, updates = fed.round(fed.init())
        >>> state.round, [update.top_k for update in updates]
        (1, [2, 1])
        >>> sorted(fed.evaluate(state).scores)
        ['high', 'low']
    """

    def __init__(
        self,
        model: str | Path,
        clients: Sequence[Client],
        *,
        tiers: Mapping[str, Tier] | None = None,
        strategy: Strategy | None = None,
        lora: LoRA | None = None,
        training: Training | None = None,
        local: LocalStep | None = None,
        test: Sequence[Any] = (),
        validation: Sequence[Any] = (),
        evaluation: EvaluationSettings | None = None,
        rounds: int = 10,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """Describe the federation; the model is loaded when it is first needed.

        Args:
            model: `mini`, a model's folder, or an id on the Hugging Face Hub.
            clients: those who train, in the order of their numbers.
            tiers: each budget tier by name; without them all clients activate the model's K.
            strategy: how updates are averaged; FedAvg without one.
            lora: rank, alpha and targets of the adapters.
            training: one local round's steps, batch size and learning rate.
            local: a local step of your own in place of AdamW's; see `training.LocalClient`.
            test: examples that scores are measured on. Without any, a seventh of every client's
                rows is held out: `fed.held_out` says how many.
            validation: the same for `evaluate(state, "validation")`.
            evaluation: how many examples are scored, and how.
            rounds: the length of the run that the learning rate decays over.
            seed: all randomness is derived from this, the round and the client.
            **settings: any further field of `Experiment`, such as `upload` or `server_optimizer`.

        Raises:
            ConfigError: a client's tier does not exist, or two clients have one name.
        """
        self.names = [c.name or f"client-{number}" for number, c in enumerate(clients)]
        known = dict(tiers or {})
        self._check(clients, known)
        rows = dict(zip(self.names, (c.rows for c in clients), strict=True))
        self.experiment = Experiment(
            model=ModelSettings(path=str(model)),
            data=Memory.of_clients(rows, test=tuple(test), validation=tuple(validation)),
            partition=Given(clients=tuple(self.names)),
            budget=_budget(clients, known),
            aggregation=strategy or FedAvg(),
            adapter=lora or LoRA(),
            training=replace(training or Training(), local_step=local),
            evaluation=evaluation or EvaluationSettings(),
            rounds=rounds,
            seed=seed,
            **settings,
        )

    def init(self) -> ServerState:
        """Return the state before the first round: an adapter that changes nothing."""
        return self.prepared.server.first_state()

    def plan(self, state: ServerState, clients: int | None = None) -> list[Task]:
        """Return the next round's tasks, for so many sampled clients or for all of them."""
        self._check_open()
        server = self.prepared.server
        number = clients or len(server.members)
        seed = self.experiment.seed
        return plan_round(state, server.members, number, seed, server.send_to)

    def round(
        self, state: ServerState, clients: int | None = None
    ) -> tuple[ServerState, list[Update]]:
        """Train one round and return the next state, with the updates that made it.

        Raises:
            FedMoEError: a client failed; says which, and why.
        """
        server = self.prepared.server
        updates = []
        for answer in InProcess(server, self.prepared.scorer)(self.plan(state, clients)):
            if isinstance(answer, Failure):
                raise FedMoEError(f"{self.names[answer.client]} failed: {answer.reason}")
            updates.append(answer)
        return self.combine(state, updates), updates

    def combine(self, state: ServerState, updates: Sequence[Update]) -> ServerState:
        """Return the next state from updates of your choice, such as those a filter leaves."""
        self._check_open()
        e = self.prepared.setup.experiment
        members = len(self.prepared.server.members)
        args = updates, e.server_optimizer, members, e.robust_rule, root_of(self.prepared.server)
        return finish_round(state, e.aggregation, *args)

    def evaluate(self, state: ServerState, split: str = "test") -> Evaluations:
        """Score a state at every tier, on `test` or `validation` examples."""
        server, scorer = self.prepared.server, self.prepared.scorer
        found = []
        for tier, top_k in server.setup.top_ks.items():
            adapter = server.send(state.adapter, tier)
            for client in server.scored(tier):
                rescaler = state.rescalers[tier]
                task = Task(state.round + 1, client, tier, top_k, rescaler, adapter)
                found.append(scorer.score(pack_task(task), split))
        return Evaluations(state.round, {result.tier: result for result in by_tier(found)})

    def run(
        self,
        folder: Path | str = "runs",
        *,
        name: str = "federation",
        resume: Resume = "no",
        display: session.Display | None = None,
    ) -> RunResults:
        """Run all rounds with a ledger, checkpoints and a report, in `folder/name`."""
        simulation = replace(self.experiment.simulation, folder=str(folder))
        experiment = replace(self.experiment, name=name, simulation=simulation)
        return run(experiment, resume=resume, display=display)

    def export(self, state: ServerState, out: Path | str, **options: Any) -> Exported:
        """Write a state's adapter in a folder that proves itself; see `SavedRun.export`."""
        from fedmoe.export.saved import SavedRun

        setup = self.prepared.setup
        saved = SavedRun(
            self.experiment,
            setup.model,
            setup.tokenizer,
            state.adapter,
            state.rescalers,
            state.round,
        )
        return saved.export(Path(out), **options)

    @property
    def held_out(self) -> dict[str, int]:
        """The number of examples per split that no client trains on."""
        return {name: len(found.rows) for name, found in self.prepared.scorer.sets.items()}

    @cached_property
    def prepared(self) -> Prepared:
        """Both sides of the run, with the model; made when first needed."""
        return prepare(self.experiment)

    def __repr__(self) -> str:
        tiers = ", ".join(self.experiment.budget.resolved(1)) or "full"
        return (
            f"Federation({self.experiment.model.path!r}, {len(self.names)} clients, tiers {tiers})"
        )

    def _check_open(self) -> None:
        """Refuse single rounds where the experiment hides single updates: they would be shown."""
        for name in ("privacy", "secure_aggregation"):
            if getattr(self.experiment, name) is not None:
                raise FedMoEError(
                    f"a federation that is run round by round shows each client's update, and "
                    f"{name} hides them: use `run`, or leave out {name}"
                )

    def _check(self, clients: Sequence[Client], tiers: Mapping[str, Tier]) -> None:
        faults = [
            Fault(f"clients[{n}].tier", f"{c.tier!r} is not one of {', '.join(map(repr, tiers))}")
            for n, c in enumerate(clients)
            if c.tier and c.tier not in tiers
        ]
        faults += [
            Fault(f"clients[{n}].name", f"{name!r} is another client's name, too")
            for n, name in enumerate(self.names)
            if name in self.names[:n]
        ]
        if not clients:
            faults.append(Fault("clients", "there is none; give at least one"))
        if faults:
            raise ConfigError("Federation", faults)


def _budget(clients: Sequence[Client], tiers: Mapping[str, Tier]) -> Levels:
    """Return the tiers with the numbers of their clients; a client without one is in the first."""
    first = next(iter(tiers), "")
    of = {
        name: tuple(n for n, c in enumerate(clients) if (c.tier or first) == name) for name in tiers
    }
    return Levels(tiers={n: replace(tier, clients=of[n]) for n, tier in tiers.items()})
