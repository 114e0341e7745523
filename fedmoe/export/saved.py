"""A finished or interrupted run, opened from its folder: its model, adapter and budgets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, Layout, initial_adapter
from fedmoe.config import Experiment, load_experiment
from fedmoe.data.templates import template_of
from fedmoe.errors import CheckpointError, FedMoEError
from fedmoe.export.peft import check_export, export
from fedmoe.messages.records import Task
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import ModelSettings, build_model
from fedmoe.runs.round_files import read_tensors
from fedmoe.seeds import generator

WORDING = "wording.json"


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
        """Return the adapter that the model computes with at a tier, by default at full rank.

        Raises:
            FedMoEError: clients keep a part to themselves: there is no common model.
        """
        strategy, plain = self.experiment.aggregation, self.model.layout
        if strategy.personal:
            raise FedMoEError(
                f"a run of {strategy.name!r} has no common model: its clients keep a part of it to "
                "themselves, in the folder `clients` of the run"
            )
        tiers = self.experiment.budget.resolved(self.model.full_top_k)
        rank = tiers[tier].rank if tier in tiers else None
        plain = plain.with_rank(rank) if rank and rank != plain.rank else plain
        top_k = tiers[tier].top_k if tier in tiers else self.model.full_top_k
        rescaler = torch.ones(plain.num_layers)
        sent = strategy.send(self.state, plain)
        task = Task(self.round + 1, 0, tier or "", top_k, rescaler, sent)
        layouts = strategy.layouts(plain, self.round + 1)
        return strategy.local(task, layouts, _initial(self.experiment, self.model)).start

    def tier_of(self, top_k: int) -> str:
        """Return the first tier with this `top_k`, whose rescaler fits; empty if there is none."""
        tiers = self.experiment.budget.resolved(self.model.full_top_k)
        return next((name for name, tier in tiers.items() if tier.top_k == top_k), "")

    def export(self, out: Path, *, without_rescaling: bool = False) -> float:
        """Write a PEFT folder, and return its largest deviation; see `export.peft.export`.

        The file `wording.json` in it says how the prompts were worded that it was trained on.

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
        difference = export(adapter, model, exact, out)
        if model.form.name == "causal":
            template = template_of(self.tokenizer, e.data.wording(e.text))
            text = json.dumps(template.record, indent=2, ensure_ascii=False)
            (out / WORDING).write_text(text + "\n", encoding="utf-8")
        return difference


def _initial(experiment: Experiment, model: AdaptedModel) -> Adapter:
    """Return the adapter that the run began with."""
    return initial_adapter(model.layout, generator(experiment.seed, "adapter"))


def read_adapter(path: Path, layout: Layout) -> tuple[Adapter, dict[str, Tensor], int]:
    """Return the adapter, the tiers' rescalers and the round in a file written by a run.

    Raises:
        CheckpointError: the file is damaged, or was written for another layout.
    """
    tensors, facts = read_tensors(path)
    if facts.get("layout") != layout.digest:
        raise CheckpointError(f"{path} was written for another model, rank or alpha")
    flat = torch.zeros(layout.size)
    for entry, view in layout.views(flat):
        view.copy_(tensors.pop(entry.name))
    rescalers = {name.removeprefix("rescaler."): factors for name, factors in tensors.items()}
    return Adapter(layout, flat), rescalers, int(facts["round"])
