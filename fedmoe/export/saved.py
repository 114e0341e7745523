"""A finished or interrupted run, opened from its folder: its model, adapter and budgets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.config import Experiment
from fedmoe.config.paths import saved_experiment
from fedmoe.data.federated import Federated
from fedmoe.data.text import Tokenizer, Tokens, collate
from fedmoe.errors import CheckpointError, FedMoEError, FedMoEWarning
from fedmoe.export.device_costs import devices_of
from fedmoe.export.exported import Export, Exported, Prove
from fedmoe.export.formats import FORMATS, check_dtype
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import ModelSettings, build_model
from fedmoe.models.memory.frozen import frozen_digest
from fedmoe.runs.data import pooled_data
from fedmoe.runs.saved_adapter import deployed, read_adapter
from fedmoe.runs.start import first_adapter, read_start

PROVED = 16
"""Test rows of the run on which an export is proved."""


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The content of a run's folder."""

    experiment: Experiment
    model: AdaptedModel
    tokenizer: Tokenizer
    state: Adapter
    """The global state, as the strategy keeps it."""
    rescalers: dict[str, Tensor]
    round: int
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path, which: str, **loading: bool) -> SavedRun:
        """Load `adapter-<which>` of a run and the model it belongs to, `loading` as `build_model`.

        Raises:
            CheckpointError: the folder is no run's, or its adapter is damaged or of another model.
        """
        experiment = e = cls.experiment_of(folder, which)
        model, tokenizer = build_model(e.model, e.adapter, e.rescaling, e.gating, **loading)
        layout = experiment.aggregation.first_state(_initial(experiment, model)).layout
        weights = folder / f"adapter-{which}.safetensors"
        state, rescalers, number = read_adapter(weights, layout)
        return cls(experiment, model, tokenizer, state, rescalers, number, folder)

    @staticmethod
    def experiment_of(folder: Path, which: str) -> Experiment:
        """Return the experiment of a run's folder with an adapter.

        Raises:
            CheckpointError: it is none.
        """
        for name in ("config.yaml", f"adapter-{which}.safetensors"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} is not the folder of a run with an adapter: {name} is missing"
                )
        return saved_experiment(folder)

    def adapter(self, tier: str | None = None) -> Adapter:
        """Return the adapter that the model computes with at a tier; see `deployed`."""
        e, initial = self.experiment, _initial(self.experiment, self.model)
        return deployed(e, initial, self.state, self.round, self.model.full_top_k, tier)

    def tier_of(self, top_k: int) -> str:
        """Return the first tier with this `top_k`, whose rescaler fits; empty if there is none."""
        tiers = self.experiment.budget.resolved(self.model.full_top_k)
        return next((name for name, tier in tiers.items() if tier.top_k == top_k), "")

    def export(
        self,
        out: Path,
        *,
        format: str = "peft",
        tier: str = "",
        dtype: str | None = None,
        without_rescaling: bool = False,
        prove: Prove | None = None,
    ) -> Exported:
        """Write the adapter for another program, in a folder that proves itself.

        Args:
            format: the program; see `formats.FORMATS`.
            tier: whose k and rank; the model's full k and the full rank when omitted. `lowest` is
                the tier of the smallest k.
            dtype: of merged weights; the base's own when omitted.
            without_rescaling: leave out learned factors, which an adapter cannot express.
            prove: computes the consumer's logits; in a fresh process when omitted.

        Raises:
            FedMoEError: `out` exists; there is no such tier or format; or the format cannot have
                what the run learnt.
        """
        check_dtype(format, dtype)
        tiers = self.experiment.budget.resolved(self.model.full_top_k)
        if tier == "lowest":
            tier = min(tiers, key=lambda name: tiers[name].top_k)
        if tier and tier not in tiers:
            raise FedMoEError(f"--tier {tier!r} is not one of {', '.join(map(repr, tiers))}")
        if tier and tiers[tier].subset:
            raise FedMoEError(
                f"--tier {tier!r}: each of its clients keeps other experts; leave --tier out"
            )
        e, model = self.experiment, self._exact()
        top_k = tiers[tier].top_k if tier else model.full_top_k
        rows, pad = self.test_rows(PROVED), self.tokenizer.pad_token_id
        return Export(
            name=e.name,
            format=format,
            adapter=self.adapter(tier or None),
            model=model,
            path=e.model.path,
            tokenizer=self.tokenizer,
            text=e.data.wording(e.text),
            tier=tier,
            top_k=top_k,
            factors=self._factors(format, tier, top_k, without_rescaling),
            dtype=dtype,
            rows=[collate(rows[n : n + 4], pad) for n in range(0, len(rows), 4)],
            run=self.folder,
            devices=devices_of(self),
            data=str(getattr(e.data, "name", type(e.data).__name__)),
        ).write(out, prove)

    def test_rows(self, most: int) -> list[Tokens]:
        """Return some of the run's test rows; none where they are gone, or with their owners."""
        e, form = self.experiment, self.model.form.name
        if isinstance(e.data, Federated) or form != "causal":
            return []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FedMoEWarning)
                rows = pooled_data(e, self.tokenizer, form).sets["test"].rows
        except FedMoEError:
            return []
        return [*rows[:most]]

    def _exact(self) -> AdaptedModel:
        """Return the model in float32: one in bfloat16 has rounded weights, and other logits."""
        e = self.experiment
        if e.model.dtype == "float32" and self.model.device.type == "cpu":
            return self.model
        exact = ModelSettings(path=e.model.path, dtype="float32", device="cpu")
        return build_model(exact, e.adapter, e.rescaling, e.gating)[0]

    def _factors(self, format: str, tier: str, top_k: int, without: bool) -> Tensor:
        """Return the factors on the layers' outputs that an export has at a tier."""
        layers, e, full = self.model.layout.num_layers, self.experiment, self.model.full_top_k
        merged = FORMATS[format].whole
        if merged and e.rescaling.reweighs and top_k != full:
            raise FedMoEError(
                f"rescaling.by 'mass' weighs experts otherwise at k = {top_k}, which no other "
                "program does; export at the full k, without --tier"
            )
        if without:
            return torch.ones(layers)
        tiers = e.budget.resolved(full)
        named = [tier] if tier else [name for name in tiers if tiers[name].top_k == top_k]
        found = [self.rescalers[name] for name in named if name in self.rescalers]
        found = found or [e.rescaling.initial(layers, full, top_k)]
        low, high = (f"{bound(torch.cat(found)).item():.3g}" for bound in (torch.min, torch.max))
        said = f"the run was scored with factors on its layers' outputs, {low} to {high}"
        if not merged and bool((torch.cat(found) != 1).any()):
            raise FedMoEError(
                f"{said} at k = {top_k}, which an adapter cannot express; --for merged has them in "
                "its weights, and --without-rescaling leaves them out"
            )
        if not all(torch.equal(one, found[0]) for one in found):
            raise FedMoEError(f"{said}, that differ between {', '.join(named)}; name one by --tier")
        return found[0]


def _initial(experiment: Experiment, model: AdaptedModel) -> Adapter:
    """Return what the run's clients without a past began with."""
    if experiment.adapter.start and experiment.aggregation.warm == "here":
        start = read_start(experiment, model, frozen_digest(model.model))
        assert start is not None
        return start.adapter
    return first_adapter(experiment, model.layout)
