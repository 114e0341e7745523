"""The `Experiment` tree: everything a run depends on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmoe.aggregation import (
    ROBUST_RULES,
    SERVER_OPTIMIZERS,
    Aggregation,
    Flame,
    NoOptimizer,
    RobustRule,
    ServerOptimizer,
    rule_for,
    unfit,
)
from fedmoe.budget import BUDGETS, Budget, Levels
from fedmoe.config.constraints import faults_of
from fedmoe.config.faults import parse_faults
from fedmoe.config.files import OwnFile
from fedmoe.config.simulation import Simulation
from fedmoe.data import DATASETS, PARTITIONS, Dataset, HomeAssistant, Partition
from fedmoe.data.partition import Natural
from fedmoe.data.text import TextSettings
from fedmoe.devices import Device
from fedmoe.errors import ConfigError, Fault, Unfit
from fedmoe.evaluation.early_stopping import EarlyStopping
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.messages.compression import COMPRESSIONS, Compression, NoCompression
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.gating import Gating, TopKGating
from fedmoe.models.rescaling import RESCALINGS, NoRescaling, Rescaling
from fedmoe.privacy.masks.settings import SecureAggregation
from fedmoe.privacy.settings import Privacy
from fedmoe.section import section
from fedmoe.training.router_losses import RouterLosses
from fedmoe.training.settings import Training


@section
class Admission:
    """Limits on what the server accepts, beside those that no honest client exceeds."""

    most_examples: Annotated[int, Field(ge=1)] = 1_000_000
    """Examples that a client may claim to hold; they weigh its update. An update of more is
    refused."""
    most_growth: Annotated[float, Field(ge=1)] = 1.0
    """Factor by which a client with rows of its own may outgrow the examples of its first update. A
    later update of more is refused, until the client has left (`membership.most_absent`) and
    joined again."""


@section
class Membership:
    """Rules for clients that are known by name and come and go between rounds."""

    least: Annotated[int, Field(ge=1)] = 1
    """Clients that must be there before a round begins."""
    wait_seconds: Annotated[float, Field(ge=0)] = 120.0
    """Seconds to wait for them, and before the first round for the clients that `data.clients`
    lists; those that are then missing join when they come."""
    most_absent: Annotated[int, Field(ge=0)] | None = None
    """Rounds in a row that a client may miss; after that it counts as gone, until it is back. It
    may miss any number when omitted."""
    joins: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """In a simulation: the first round of clients that come later, by name."""
    leaves: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """In a simulation: the first round that a client misses, and all after it, by name."""

    def takes_part(self, name: str, round: int) -> bool:
        """Return whether a simulated client is there in a round."""
        return self.joins.get(name, 0) <= round < self.leaves.get(name, round + 1)


@section
class Experiment:
    """One federated run.

    Example:
        >>> experiment = Experiment(rounds=3, aggregation={"name": "flame", "temperature": 1.0})
        >>> experiment.aggregation.temperature
        1.0
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    """Name of the run and of its folder."""
    seed: int = 0
    """All randomness is derived from this, the round and the client."""
    rounds: Annotated[int, Field(ge=0)] = 10
    """Rounds of training and aggregation; 0 evaluates the base model, at every tier."""
    clients_per_round: Annotated[int, Field(ge=1)] | None = None
    """Clients sampled in each round; all of them when omitted."""
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of a round's clients, rounded up to a number, that must have given an update. A round
    of fewer is not aggregated: the run ends as failed, and can be resumed. One is always needed."""
    model: ModelSettings = ModelSettings()
    adapter: LoRA = LoRA()
    rescaling: Annotated[Rescaling, RESCALINGS] = NoRescaling()
    gating: Gating = TopKGating()
    """The rule by which tokens and experts choose each other within a budget's k (softmax)."""
    data: Annotated[Dataset, DATASETS] = HomeAssistant()
    text: TextSettings = TextSettings()
    partition: Annotated[Partition, PARTITIONS] = Natural()
    budget: Annotated[Budget, BUDGETS] = Levels()
    training: Training = Training()
    losses: RouterLosses = RouterLosses()
    """Additions to the loss for routing's sake; none by default."""
    aggregation: Aggregation = Flame()
    robust: Annotated[RobustRule, ROBUST_RULES] | None = None
    """How liars among the clients are withstood: `clip` when omitted, with a strategy that is a
    weighted mean by itself whose terms the server may see; `none` with any other."""
    server_optimizer: Annotated[ServerOptimizer, SERVER_OPTIMIZERS] = NoOptimizer()
    upload: Annotated[Compression, COMPRESSIONS] = NoCompression()
    """The format of the values in clients' updates."""
    admission: Admission = Admission()
    privacy: Privacy | None = None
    """Differential privacy of clients, by noise on sums; none when omitted."""
    secure_aggregation: SecureAggregation | None = None
    """Masks under which the server sees sums alone; none when omitted."""
    membership: Membership = Membership()
    evaluation: EvaluationSettings = EvaluationSettings()
    early_stopping: EarlyStopping | None = None
    """End the run when its validation scores stop improving; never when omitted."""
    devices: dict[str, Annotated[Device, OwnFile()]] = Field(default_factory=dict)
    """The device of each tier's clients, a mapping or the path of a YAML file: every client then
    has a clock of its own. Omit it to simulate none."""
    simulation: Simulation = Simulation()
    faults: str = ""
    """Faults to inject, as a rehearsal, as `fedmoe run --faults` takes them:
    `drop=.1,slow=3x,corrupt=.01,nan=.02,kill-client=.05,kill-server@3`."""

    @property
    def robust_rule(self) -> RobustRule:
        """The rule of `robust`, or the one that stands in for none."""
        return rule_for(self.robust, self.aggregation, self.hides_clients)

    @property
    def unguarded(self) -> tuple[str, ...]:
        """What is to be said where nobody asked for a rule, and none can judge the strategy."""
        if self.robust or self.hides_clients or not (why := unfit(self.aggregation)):
            return ()
        return (f"robust: none, since a rule {why}. One client that lies may go to its bounds.",)

    @property
    def hides_clients(self) -> bool:
        """Whether no client's own numbers are to be seen in what a run writes."""
        return self.privacy is not None or self.secure_aggregation is not None

    def availability(self, tier: str) -> float:
        """The probability that a client of a tier is reachable in a round."""
        return self.devices[tier].availability if self.devices else 1.0

    def _without_effect(self) -> list[Fault]:
        """Return settings for clients with rows of their own, where there are none."""
        if self.data.name == "federated":
            return []
        chosen = {
            "admission.most_growth": self.admission.most_growth != Admission().most_growth,
            "membership": self.membership != Membership(),
            "evaluation.clients": self.evaluation.clients is not None,
            "evaluation.every_tier": self.evaluation.every_tier,
        }
        said = "is for clients with rows of their own (data.name: federated); leave it out"
        return [Fault(path, said) for path, set_here in chosen.items() if set_here]

    def __post_init__(self) -> None:
        found: list[Fault] = []
        try:
            parse_faults(self.faults)
        except ConfigError as error:
            found = [Fault("faults", str(fault)) for fault in error.faults]
        if self.evaluation.best == "server" and not hasattr(self.data, "server_test"):
            said = "'server' is for clients with rows of their own (data.name: federated)"
            found.append(Fault("evaluation.best", said))
        found += self._without_effect()
        if found := [*found, *faults_of(self)]:
            raise Unfit(found)
