"""Answers of the base model or of a run's adapter, streamed at a chosen k."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fedmoe.budget import Tier
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import end_tokens, prompt_ids
from fedmoe.errors import FedMoEError, FedMoEWarning, ModelError
from fedmoe.export.saved import SavedRun
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import MINI, ModelSettings, build_model, model_folder
from fedmoe.models.conventions import most_positions
from fedmoe.models.decode import greedy_stream
from fedmoe.models.memory.stored import Frozen
from fedmoe.models.pretrained_gating import gating_of
from fedmoe.models.rescaling import NoRescaling


class Generator:
    """A model with its budget set, ready to answer."""

    def __init__(self, model: AdaptedModel, tokenizer: Any, text: TextSettings) -> None:
        self.model, self.tokenizer, self.text = model, tokenizer, text

    @classmethod
    def of(
        cls,
        run: Path | None,
        model: str,
        which: str,
        tier: str | None,
        top_k: int | None,
        experts: Frozen | None = None,
        offload: bool | None = None,
    ) -> Generator:
        """Return the generator that the command line describes.

        Args:
            run: a run's folder; None for the base `model` alone.
            experts: the form of its frozen experts; the tier's `frozen` when omitted.
            offload: keep them in a mapped file and read them when the router asks; as the tier
                does when omitted.

        Raises:
            FedMoEError: no such run, tier or k.
        """
        if run is None:
            if tier:
                raise FedMoEError("--tier needs --run")
            form: dict[Frozen, bool] = {experts or "full": bool(offload)}
            settings = ModelSettings(path=model)
            gating = gating_of(Path(model_folder(model)))
            none = LoRA(rank=1)
            adapted, tokenizer = build_model(
                settings, none, NoRescaling(), gating, **_loading(form)
            )
            # The built-in base was pretrained on plain prompts, and never saw its template.
            text, rescaler = TextSettings(template="plain" if model == MINI else "auto"), None
        else:
            known = SavedRun.experiment_of(run, which).budget.resolved(1)
            trained = known.get(tier or "", Tier(top_k=1))
            form = {experts or trained.frozen: trained.offload if offload is None else offload}
            saved = SavedRun.open(run, which, **_loading(form))
            adapted, tokenizer = saved.model, saved.tokenizer
            adapted.load(saved.adapter(tier))
            text = saved.experiment.data.wording(saved.experiment.text)
            tiers = saved.experiment.budget.resolved(adapted.full_top_k)
            if tier is not None and tier not in tiers:
                raise FedMoEError(f"--tier {tier!r} is not one of {', '.join(map(repr, tiers))}")
            if tier and tiers[tier].subset:
                raise FedMoEError(
                    f"--tier {tier!r}: each of its clients keeps the experts that its own data "
                    "choose, and there are no data here; give --top-k, which uses all experts"
                )
            top_k = top_k or (tiers[tier].top_k if tier else None)
            rescaler = saved.rescalers.get(tier or saved.tier_of(top_k or adapted.full_top_k))
        adapted.frozen.hold(form, paged=True)
        top_k = adapted.full_top_k if top_k is None else top_k
        if not 1 <= top_k <= adapted.layout.num_experts:
            raise FedMoEError(f"--top-k {top_k}: expected 1 to {adapted.layout.num_experts}")
        if said := adapted.gates.gating.misfit(adapted.layout.num_experts, top_k):
            raise FedMoEError(f"--top-k {top_k}: {said}")
        adapted.check_top_ks({top_k})
        adapted.set_budget(top_k, rescaler)
        return cls(adapted, tokenizer, text)

    def stream(self, prompt: str, max_new_tokens: int) -> Iterator[str]:
        """Generate the answer to one prompt, piece by piece."""
        form = self.model.form.name
        ids = torch.tensor([prompt_ids(prompt, self.tokenizer, self.text, form)])
        self._check_length(ids.shape[1], max_new_tokens)
        ends = end_tokens(self.tokenizer, self.text, form)
        yield from greedy_stream(self.model.model, ids, max_new_tokens, self.tokenizer, ends)

    def _check_length(self, prompt: int, new: int) -> None:
        """Warn of an answer that may end beyond the model's positions; refuse it if there are none.

        Raises:
            ModelError: its positions are learned.
        """
        most, learned = most_positions(self.model.model)
        if self.model.form.name != "causal" or most is None or prompt + new <= most:
            return
        said = f"a prompt of {prompt:,} tokens and {new:,} new ones are more than the {most:,} that"
        if learned:
            raise ModelError(f"{said} the model has positions for; lower --max-new-tokens")
        warnings.warn(f"{said} the model is made for", FedMoEWarning, stacklevel=3)


def _loading(form: dict[Frozen, bool]) -> dict[str, bool]:
    """Return how to load a model whose experts take this form; all of them in full are one."""
    return {"experts_stay": True, "offload": form != {"full": False}}
