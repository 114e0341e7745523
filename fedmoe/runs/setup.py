"""The part of a run that both sides share: the model, the tiers and the strategy's layouts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedmoe.errors import WireError
from fedmoe.models.kernels import kernels_note

if TYPE_CHECKING:
    from fedmoe.adapter import Adapter, Layout
    from fedmoe.aggregation.strategy import Layouts
    from fedmoe.budget import Tier
    from fedmoe.config.schema import Experiment
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.memory.stored import Frozen
    from fedmoe.models.memory.subset import Subset
    from fedmoe.runs.start import Start
    from fedmoe.training.settings import Training


@dataclass(frozen=True, eq=False)
class Setup:
    """The part of a run that follows from the experiment alone, the same on every machine."""

    experiment: Experiment
    """The experiment as it is run: an automatic budget has been planned."""
    model: AdaptedModel
    tokenizer: Any
    tiers: dict[str, Tier]
    training: Training
    initial: Adapter
    """What a client without a past may start from: an adapter that changes nothing, or `start`."""
    base: str
    """A digest of the frozen model as it was loaded."""
    start: Start | None = None
    """The adapter that was trained before, if the run begins with one; on the server alone."""

    def first_state(self) -> Adapter:
        """Return the global adapter before round 1, as the strategy keeps it."""
        strategy = self.experiment.aggregation
        if self.start is None:
            return strategy.first_state(self.initial)
        return strategy.warm_state(self.initial, self.start.adapter)

    @property
    def for_clients(self) -> Experiment:
        """Return the experiment without what the server alone has: the adapter it starts from."""
        e = self.experiment
        return replace(e, adapter=replace(e.adapter, start=""))

    @property
    def top_ks(self) -> dict[str, int]:
        """Each tier's number of active experts."""
        return {name: tier.top_k for name, tier in self.tiers.items()}

    def tier(self, name: str) -> Tier:
        """Return a tier by its name.

        Raises:
            WireError: there is no such tier.
        """
        if name not in self.tiers:
            raise WireError(f"there is no tier {name!r}; the tiers are {', '.join(self.tiers)}")
        return self.tiers[name]

    def plain(self, tier: str) -> Layout:
        """Return the layout of every tensor that LoRA adds, at the rank of a tier's clients."""
        return self.experiment.adapter.at_rank(self.model.layout, self.tier(tier).rank)

    def layouts(self, tier: str, round: int) -> Layouts:
        """Return what a tier's client receives, trains and sends in a round, and what it stores."""
        return self.experiment.aggregation.layouts(self.plain(tier), round)

    def training_of(self, tier: str) -> Training:
        """Return the training settings of a tier's clients."""
        changes = self.tier(tier).training_changes
        return replace(self.training, **changes) if changes else self.training

    def subset(self, tier: str) -> Subset | None:
        """Return the subset of experts that a tier's clients hold; None where they hold all."""
        subset = self.tier(tier).subset
        return subset if subset and subset.keep < self.model.layout.num_experts else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is to be said of how the model computes."""
        tiers: dict[str, tuple[Frozen, bool, bool]] = {}
        for name, tier in self.tiers.items():
            apart = tier.offload or tier.subset is not None
            tiers[name] = tier.frozen, apart, self.training_of(name).recompute
        note = kernels_note(self.model, self.experiment.model.kernels, tiers)
        return (note,) if note else ()

    def configure_experts(self, tier: str) -> None:
        """Let the model compute with all experts, stored as on this tier's devices."""
        self.model.kept.clear()
        self.model.frozen.use(self.tier(tier).frozen)
