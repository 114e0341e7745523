"""One export from end to end: written, loaded again by its consumer, certified, put in place."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.data.text import TextSettings
from fedmoe.errors import ModelError
from fedmoe.export.architectures import ARCHITECTURES
from fedmoe.export.card import card, licence_of
from fedmoe.export.changes import changes_of
from fedmoe.export.devices import Device, as_facts
from fedmoe.export.formats import FORMATS, WHOLE, Format, Served, writes_for
from fedmoe.export.gguf_file import LORA, MODEL, TYPES, write_gguf, write_gguf_adapter
from fedmoe.export.merged import Merge, merged_config, top_k_override
from fedmoe.export.peft import check_export, without_noise, write_peft
from fedmoe.export.per_expert import write_per_expert
from fedmoe.export.prompts import chat_wording, prompt_facts
from fedmoe.export.reload import Request, in_fresh_process
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import checkpoint_folder, skeleton
from fedmoe.models.families.family import through_interface
from fedmoe.models.tasks import TaskBatch
from fedmoe.system.files import write_json, write_text

CERTIFICATE = "fedmoe-export.json"
TOLERANCE = 1e-3
"""The largest difference of logits that rounding in float32 explains."""
MOST_LOST = 0.05
"""The largest share of the change of the logits that rounding merged weights may cost."""
Prove = Callable[[Request, Sequence[TaskBatch]], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """A finished export, and what its certificate says.

    Example:
        >>> Exported(Path("my-adapter"), {"proof": {"largest_difference": 2e-6}}).largest_difference
        2e-06
    """

    folder: Path
    facts: dict[str, Any]
    """As in `fedmoe-export.json`."""
    source: Any = None
    """The `Export` that it was made of."""

    @property
    def largest_difference(self) -> float:
        """The largest difference between the consumer's logits and those of training."""
        return self.facts["proof"]["largest_difference"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Export:
    """An adapter on its way into a folder."""

    name: str
    format: str
    adapter: Adapter
    model: AdaptedModel
    """In float32 on a CPU, with nothing rounded."""
    path: str
    """Of the base model, as `model.path` says it."""
    tokenizer: Any
    text: TextSettings
    tier: str = ""
    top_k: int
    factors: Tensor
    """(layers,): on the outputs of experts."""
    rows: Sequence[TaskBatch] = ()
    """The run's own rows to prove it on, beside two fixed ones."""
    dtype: str | None = None
    run: Path | None = None
    """The run's folder, for the card."""
    devices: Sequence[Device] = ()
    """One for each of the run's tiers, for the card."""
    data: str = ""
    """The name of the run's data set."""

    def write(self, out: Path, prove: Prove | None = None) -> Exported:
        """Write the folder, which is there when it is proved, or not at all.

        Args:
            prove: computes the consumer's logits; in a fresh process when omitted.

        Raises:
            ModelError: the format cannot have this adapter; or logits differ: nothing is left.
        """
        check_export(self.adapter, self.model, self.writes in WHOLE)
        if out.exists():
            raise ModelError(f"{out} exists already; name a folder that does not")
        unfinished = out.with_name(f"{out.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            self._weights(unfinished)
            self._tokenizer(unfinished)
            facts = self._facts() | {"proof": self._proof(unfinished, prove or in_fresh_process)}
            self.certify(unfinished, facts)
            for path in unfinished.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            unfinished.chmod(0o755)
            unfinished.rename(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return Exported(out, facts, self)

    def certify(self, out: Path, facts: Mapping[str, Any]) -> None:
        """Write what is known of the export: the certificate, and the card."""
        write_json(out / CERTIFICATE, facts)
        write_text(out / "README.md", card(facts, licence_of(self.source), self.run))

    @cached_property
    def source(self) -> Path:
        """The folder of the base's checkpoint."""
        return checkpoint_folder(self.path)

    @cached_property
    def lasting(self) -> Adapter:
        """The adapter without what a gating adds in training alone."""
        return without_noise(self.adapter, self.model)

    @property
    def base(self) -> str:
        """The base's name: without the folders of this machine."""
        return self.path if not Path(self.path).is_dir() else Path(self.path).resolve().name

    @property
    def writes(self) -> str:
        """The form that is written; see `formats.writes_for`."""
        return writes_for(self.format, self.model.family.model_type)

    def _weights(self, out: Path) -> None:
        if self.writes == "merged":
            self._merged(out)
        elif self.writes == "gguf":
            self._gguf(out / MODEL, self._merge, TYPES[self.stored], self.top_k)
        elif self.writes == "gguf-lora":
            write_gguf_adapter(self.lasting, skeleton(self.path), out / LORA, self.name)
        elif self.writes == "experts":
            write_per_expert(self.lasting, skeleton(self.path), self.base, out)
        else:
            write_peft(self.lasting, self.path, self.base, out)

    @cached_property
    def _merge(self) -> Merge:
        base, layers = skeleton(self.path), self.model.layers
        return Merge(
            base=base,
            changes=changes_of(self.lasting, base),
            scale=self.adapter.layout.scale,
            factors={x.path: f for x, f in zip(layers, self.factors.tolist(), strict=True)},
            source=self.source,
            dtype=self.dtype,
            untie=self.model.form.name == "causal",
        )

    def write_base(self, out: Path) -> None:
        """Write the base as a GGUF file in float32, for an adapter's to be tried on."""
        self._gguf(
            out,
            replace(self._merge, changes=[], factors={}, _cache={}),
            "F32",
            self.model.full_top_k,
        )

    def _gguf(self, out: Path, merge: Merge, kind: str, top_k: int) -> None:
        pad = self.tokenizer.pad_token_id
        rows = [ids[ids != pad] for batch in self.rows for ids in batch.input_ids]
        write_gguf(
            merge,
            out,
            kind=kind,
            name=self.name,
            top_k=top_k,
            tokenizer=self.tokenizer,
            template=chat_wording(self.tokenizer, self.text),
            texts=[self.tokenizer.decode(ids) for ids in rows],
        )

    def _merged(self, out: Path) -> None:
        merge = self._merge
        merge.write(out)
        changed = merged_config(self._config, self.model.full_top_k, self.top_k, merge.untie)
        write_json(out / "config.json", changed | ({"dtype": self.dtype} if self.dtype else {}))
        if (self.source / "generation_config.json").is_file():
            shutil.copyfile(self.source / "generation_config.json", out / "generation_config.json")

    def _tokenizer(self, out: Path) -> None:
        self.tokenizer.save_pretrained(str(out))
        if self.model.form.name == "causal":
            write_text(out / "chat_template.jinja", chat_wording(self.tokenizer, self.text))

    def commands(self, folder: str, top_k: int | None = None) -> list[str]:
        """Return the commands that serve the export in a folder, at its k or at another one.

        Raises:
            ModelError: the base's config has no name for k that is known here.
        """
        full, known = self.model.full_top_k, ARCHITECTURES.get(self.model.family.model_type)
        there = self.top_k if self.writes in WHOLE else full
        top_k = self.top_k if top_k is None else top_k
        served = Served(
            base=self.base,
            auto=self.model.form.auto.__name__,
            rank=self.adapter.layout.rank,
            top_k=top_k,
            override=top_k_override(self._config, full, top_k) if top_k != there else {},
            architecture=known.name.lower() if known else "",
            folder=folder,
        )
        return [*FORMATS[self.format].commands(served)]

    def _other_k(self, folder: str) -> dict[str, Any]:
        """Return another k, a tier's where one has it, and what serves the export at it."""
        some = (*sorted(device.top_k for device in self.devices), 1, self.model.full_top_k)
        other = next((k for k in some if k != self.top_k), None)
        if other is None:
            return {}
        try:
            lines = self.commands(folder, other)
        except ModelError as error:
            return {"top_k": other, "serve": [], "why": str(error)}
        return {"top_k": other, "serve": lines}

    def _facts(self) -> dict[str, Any]:
        form: Format = FORMATS[self.format]
        layout, full = self.adapter.layout, self.model.full_top_k
        word = "MODEL" if self.writes in WHOLE else "ADAPTER"
        names = ("fedmoe", "torch", "transformers", "peft")
        return {
            "name": self.name,
            "for": self.format,
            "reader": form.reader,
            "writes": self.writes,
            "base": self.base,
            "model_type": self.model.family.model_type,
            "data": self.data,
            "tier": self.tier,
            "top_k": self.top_k,
            "full_top_k": full,
            "factors": self.writes in WHOLE and bool((self.factors != 1).any()),
            "rank": layout.rank,
            "alpha": layout.alpha,
            "adapter_sha256": self.adapter.digest(),
            "prompts": prompt_facts(self.tokenizer, self.text, self.model.form.name),
            "serve": self.commands(word),
            "other_k": self._other_k(word),
            "devices": as_facts(self.devices),
            "versions": {name: importlib.metadata.version(name) for name in names},
        }

    @torch.no_grad()
    def _proof(self, folder: Path, prove: Prove) -> dict[str, Any]:
        """Return how far the consumer's logits are from ours."""
        model, form = self.model, self.model.form
        batches = [form.sample(model.model), *self.rows]
        kept = model.top_k, model.rescaler
        model.load(self.adapter)
        # An adapter has no k: it is proved at the base's own. Nor has it factors.
        merged = self.writes in WHOLE
        ones = torch.ones_like(self.factors)
        model.set_budget(*((self.top_k, self.factors) if merged else (model.full_top_k, ones)))
        ours = [model.target_logits(batch).float() for batch in batches]
        model.flat.zero_()
        plain = [model.target_logits(batch).float() for batch in batches]
        model.load(self.adapter)
        model.set_budget(*kept)
        eager = model.family.install is through_interface
        request = Request(
            str(folder), self.writes, str(self.source), model.family.model_type, eager
        )
        theirs = prove(request, batches)
        ours, theirs, plain = torch.cat(ours), torch.cat(theirs), torch.cat(plain)
        largest = (ours - theirs).abs().max().item()
        lost = ((ours - theirs).norm() / (ours - plain).norm().clamp(min=1e-6)).item()
        if not (lost < MOST_LOST if self.rounds else largest < TOLERANCE):
            raise ModelError(
                f"the logits that {FORMATS[self.format].reader} computes differ from ours by "
                f"{largest:.2e}, {lost:.0%} of what training changed; nothing was exported"
                + ("; --dtype float32 rounds nothing" if self.rounds else "")
            )
        read = {"fused": "peft", "gguf": "gguf", "gguf-lora": "gguf"}.get(self.writes)
        libraries = [*([read] if read else []), "transformers"]
        return {
            "by": " with ".join(f"{n} {importlib.metadata.version(n)}" for n in libraries),
            "rows": sum(len(batch.prompt_lengths) for batch in batches),
            "of_the_run": sum(len(batch.prompt_lengths) for batch in self.rows),
            "tokens": len(ours),
            "largest_difference": largest,
            "rounded_to": self.stored if self.rounds else "",
            "share_of_training_rounded_away": lost,
            "same_tokens": int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        }

    @property
    def rounds(self) -> bool:
        """Return whether merged weights are written in less than float32."""
        return self.writes in WHOLE and self.stored != "float32"

    @property
    def stored(self) -> str:
        """The type of merged weights."""
        named = self._config.get("dtype") or self._config.get("torch_dtype")
        return self.dtype or named or "float32"

    @cached_property
    def _config(self) -> dict[str, Any]:
        return json.loads((self.source / "config.json").read_text(encoding="utf-8"))
