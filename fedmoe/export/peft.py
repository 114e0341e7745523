"""Our adapter as a PEFT folder.

How PEFT keeps factors, and whose they are, is in `models.peft_folder`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoTokenizer

from fedmoe.adapter import RANK_AXES, SHIFT, Adapter, Entry, Layout
from fedmoe.errors import ModelError
from fedmoe.models.adapted import TOP_K, AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, device_of, load_base
from fedmoe.models.families import Family, family_of, install
from fedmoe.models.families.family import through_interface
from fedmoe.models.families.ungated import each_linear
from fedmoe.models.peft_layers import NAME, takes_transposed, target_of
from fedmoe.models.private import map_tensors
from fedmoe.models.rescaling import NoRescaling
from fedmoe.models.tasks import TASKS
from fedmoe.system.files import write_json

CONFIG = "adapter_config.json"
"""The file by which a folder is known as an adapter's."""


def write_peft(adapter: Adapter, path: str, base: str, out: Path) -> None:
    """Write an adapter into the folder `out` for `PeftModel.from_pretrained`.

    Args:
        adapter: as the model computes with it.
        path: of the base model, which is loaded.
        base: its name, for the adapter's config.
        out: the folder; what PEFT says of machines and cards is left out.
    """
    with _quiet():
        model, _ = load_base(ModelSettings(path=path, dtype="float32", device="cpu"), fast=False)
        to_peft(adapter, model).save_pretrained(str(out))
    config = json.loads((out / CONFIG).read_text())
    write_json(out / CONFIG, config | {"base_model_name_or_path": base})


@contextmanager
def _quiet() -> Iterator[None]:
    """Let no warning through that users cannot help."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads a name that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def load_export(folder: Path, base: str = "") -> tuple[AdaptedModel, Any, str]:
    """Return the base model with the adapter in a PEFT folder merged in, its tokenizer and path.

    The tokenizer is the folder's own where it has one: its chat template words prompts as they were
    in training.

    Args:
        folder: an adapter's, such as `export` writes.
        base: the base model's path; empty for the one that the folder names.

    Raises:
        ModelError: there is no such base model, or PEFT cannot put the adapter on it.
    """
    try:
        path = base or json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
        model, tokenizer = _load_base_of(folder, path, named=bool(base))
        if family_of(model).install is through_interface:
            model.set_experts_implementation("eager")  # pyright: ignore[reportCallIssue]
        with _quiet():
            wrapped: Any = PeftModel.from_pretrained(model, str(folder))  # pyright: ignore
            merged = wrapped.merge_and_unload()
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: the adapter cannot be loaded: {error!s:.300}") from error
    install(merged)
    device = device_of(ModelSettings(path=path))
    map_tensors(merged, lambda tensor: tensor.to(device))
    return AdaptedModel(merged.eval(), LoRA(rank=1), NoRescaling(), TOP_K), tokenizer, path


def _load_base_of(folder: Path, path: str, named: bool) -> tuple[nn.Module, Any]:
    """Return an adapter's base model and tokenizer; exports name it without a machine's folders."""
    try:
        return load_base(ModelSettings(path=path, device="cpu"), fast=False)
    except ModelError as error:
        if named or Path(path).is_dir():
            raise
        said = f"{folder}: its base, {path!r}, is not here; name its folder with --base"
        raise ModelError(said) from error


def check_export(adapter: Adapter, model: AdaptedModel, merged: bool = False) -> None:
    """Refuse an adapter that no other library computes, `merged` or not.

    Raises:
        ModelError: PEFT has no form for the family's experts; the adapter modulates routers, or a
            gating changes what they choose.
    """
    if model.family.no_peft and not merged:
        raise ModelError(f"no export for PEFT: {model.family.no_peft}")
    if not model.gates.gating.own and model.gates.gating.serves:
        raise ModelError(
            f"PEFT and engines would route by the model's own top-k, not by gating.name "
            f"{model.gates.gating.name!r}: only 'top_k', and gatings that choose in training "
            "alone, export"
        )
    if not {entry.kind for entry in _lasting(adapter, model)} <= {*RANK_AXES, SHIFT}:
        raise ModelError(
            "PEFT has no form for modulated routers: only LoRA and trained routers export; train "
            "with a strategy that leaves routers alone"
        )


def _lasting(adapter: Adapter, model: AdaptedModel) -> list[Entry]:
    """Return all entries but those of a gating's noise, which acts in training alone."""
    noise = {name for name, *_ in model.gates.tensors()}
    return [entry for entry in adapter.layout.entries if entry.name not in noise]


def without_noise(adapter: Adapter, model: AdaptedModel) -> Adapter:
    kept, layout = _lasting(adapter, model), adapter.layout
    flat = torch.cat([adapter.flat[entry.start : entry.stop] for entry in kept])
    tensors = [(entry.name, entry.shape, entry.layer) for entry in kept]
    sizes = layout.num_layers, layout.num_experts, layout.rank, layout.alpha
    return Adapter(Layout.of(tensors, *sizes), flat)


def peft_config(layout: Layout, family: Family, base: nn.Module) -> LoraConfig:
    """Return the LoRA configuration that reaches the same weights of `base`.

    Trained routers are saved whole, as PEFT's `modules_to_save`.
    """
    routers = [entry.name.rpartition(".")[0] for entry in layout.entries if entry.kind == SHIFT]
    dense = {entry.name.rpartition(".")[0] for entry in layout.entries if entry.layer is None}
    linears = [n for n in family.attention if any(path.endswith(f".{n}") for path in dense)]
    experts = [entry.name for entry in layout.entries if entry.layer is not None]
    if family.linears:  # as paths in full: dense layers have linear ones of the same names
        weights = {name.rpartition(".")[0] for name in experts}
        linears += {path for weight in weights for path in each_linear(weight, base, family)}
        experts = []
    fused = list(dict.fromkeys(map(_in_layer, experts)))
    alpha = int(layout.alpha) if layout.alpha == int(layout.alpha) else layout.alpha
    return LoraConfig(
        r=layout.rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        target_modules=linears,
        target_parameters=fused or None,
        modules_to_save=routers or None,
        lora_dropout=0.0,
        bias="none",
        task_type=TASKS[family.task].peft,  # pyright: ignore
    )


def _in_layer(name: str) -> str:
    """Return a weight's path below its decoder layer, `mlp.experts.down_proj`, by factor."""
    path = name.rpartition(".")[0]
    return re.split(r"\.\d+\.", path, maxsplit=1)[-1]


def _one_by_one(values: dict[str, Tensor], base: nn.Module, family: Family) -> dict[str, Tensor]:
    """Return every factor by the path of its layer, where experts are separate modules."""
    split: dict[str, Tensor] = {}
    for name, view in values.items():
        if view.dim() == 3:
            weight, _, factor = name.rpartition(".")
            paths = each_linear(weight, base, family)
            split |= {f"{path}.{factor}": one for path, one in zip(paths, view, strict=True)}
        else:
            split[name] = view
    return split


def to_peft(adapter: Adapter, base: nn.Module) -> PeftModel:
    """Return `base`, a model of transformers, wrapped by PEFT with the adapter's values."""
    family = family_of(base)
    config, values = peft_config(adapter.layout, family, base), adapter.views()
    if family.linears:
        values = _one_by_one(values, base, family)
    wrapped = get_peft_model(base, config)  # pyright: ignore
    for path, layer in wrapped.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and NAME in layer.lora_A:
            target = target_of(path, layer)
            a, b = values.pop(f"{target}.A"), values.pop(f"{target}.B")
            if a.dim() == 3 and family.form.transposed and not takes_transposed(layer):
                a, b = b.mT, a.mT  # the delta of W^T is A^T B^T
            layer.lora_A[NAME].weight.data.copy_(_peft_a(a))  # pyright: ignore
            layer.lora_B[NAME].weight.data.copy_(_peft_b(b))  # pyright: ignore
        elif isinstance(layer, ModulesToSaveWrapper):
            _shift(layer.modules_to_save[NAME], values.pop(f"{path}.{SHIFT}"))
    if values:
        raise ModelError(f"PEFT reaches no weight for {', '.join(sorted(values))}")
    return wrapped  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _shift(router: nn.Module, shift: Tensor) -> None:
    """Add the trained difference to a router's one weight of this shape."""
    (weight,) = (p for p in router.parameters() if p.shape == shift.shape)
    weight += shift


def _peft_a(a: Tensor) -> Tensor:
    return a.reshape(-1, a.shape[-1])


def _peft_b(b: Tensor) -> Tensor:
    return b if b.dim() == 2 else b.permute(1, 2, 0).reshape(b.shape[1], -1)
