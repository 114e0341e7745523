"""A finished or interrupted run, opened from its folder: its model, adapter and budgets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.config import Experiment, load_experiment
from fedmoe.errors import CheckpointError, FedMoEError
from fedmoe.export.peft import check_export, export
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import ModelSettings, build_model
from fedmoe.models.memory.frozen import frozen_digest
from fedmoe.runs.saved_adapter import deployed, read_adapter
from fedmoe.runs.start import first_adapter, read_start


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The content of a run's folder."""

    experiment: Experiment
    model: AdaptedModel
    tokenizer: object
    state: Adapter
    """The global state, as the strategy keeps it."""
    rescalers: dict[str, Tensor]
    round: int

    @classmethod
    def open(cls, folder: Path, which: str) -> SavedRun:
        """Load `adapter-<which>` of a run and the model it belongs to.

        Raises:
            CheckpointError: the folder is no run's, or its adapter is damaged or of another model.
        """
        config, weights = folder / "config.yaml", folder / f"adapter-{which}.safetensors"
        for path in (config, weights):
            if not path.is_file():
                raise CheckpointError(
                    f"{folder} is not the folder of a run with an adapter: {path.name} is missing"
                )
        experiment = load_experiment(config)
        e = experiment
        model, tokenizer = build_model(e.model, e.adapter, e.rescaling, e.gating)
        layout = experiment.aggregation.first_state(_initial(experiment, model)).layout
        state, rescalers, number = read_adapter(weights, layout)
        return cls(experiment, model, tokenizer, state, rescalers, number)

    def adapter(self, tier: str | None = None) -> Adapter:
        """Return the adapter that the model computes with at a tier; see `deployed`."""
        e, initial = self.experiment, _initial(self.experiment, self.model)
        return deployed(e, initial, self.state, self.round, self.model.full_top_k, tier)

    def tier_of(self, top_k: int) -> str:
        """Return the first tier with this `top_k`, whose rescaler fits; empty if there is none."""
        tiers = self.experiment.budget.resolved(self.model.full_top_k)
        return next((name for name, tier in tiers.items() if tier.top_k == top_k), "")

    def export(self, out: Path, *, without_rescaling: bool = False) -> float:
        """Write a PEFT folder, and return its largest deviation; see `export.peft.export`.

        Raises:
            FedMoEError: `out` exists; the run learned factors at full k, which PEFT cannot express,
                and `without_rescaling` is false; or see there.
        """
        if out.exists():
            raise FedMoEError(f"{out} exists already; name a folder that does not")
        adapter, full = self.adapter(), self.model.full_top_k
        check_export(adapter, self.model)
        tiers = self.experiment.budget.resolved(full)
        found = [f for name, f in self.rescalers.items() if tiers[name].top_k == full]
        factors = torch.cat([torch.ones(1), *found])
        if bool((factors != 1).any()) and not without_rescaling:
            raise FedMoEError(
                f"the run was scored with factors on its layers' outputs, {factors.min():.3g} to "
                f"{factors.max():.3g} at full k (rescaling.name: learned), which PEFT cannot "
                "express; --without-rescaling exports the adapter alone, without the factors"
            )
        e = self.experiment
        exact = ModelSettings(path=e.model.path, dtype="float32", device="cpu")
        # A run in bfloat16 has rounded weights, whose logits are not PEFT's.
        same = e.model.dtype == "float32" and self.model.device.type == "cpu"
        model = self.model if same else build_model(exact, e.adapter, e.rescaling, e.gating)[0]
        return export(adapter, model, exact, out)


def _initial(experiment: Experiment, model: AdaptedModel) -> Adapter:
    """Return what the run's clients without a past began with."""
    if experiment.adapter.start and experiment.aggregation.warm == "here":
        start = read_start(experiment, model, frozen_digest(model.model))
        assert start is not None
        return start.adapter
    return first_adapter(experiment, model.layout)
