"""Our adapter as a PEFT folder, and the proof that PEFT computes the same with it.

PEFT 0.21 keeps the factors of fused experts as `A` (experts * rank, in), expert-major, and `B`
(out, rank * experts), expert-*minor*: slicing B the obvious way gives wrong weights. Its key names
do not tell which parameter a factor belongs to (wrappers nest), but each wrapper does.
"""

from __future__ import annotations

import json
import re
import shutil
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

from fedmoe.adapter import RANK_AXES, Adapter, Entry, Layout
from fedmoe.errors import ModelError
from fedmoe.models.adapted import TOP_K, AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, device_of, load_base
from fedmoe.models.families import Family, family_of, install
from fedmoe.models.families.family import through_interface
from fedmoe.models.families.ungated import each_expert
from fedmoe.models.private import map_tensors
from fedmoe.models.rescaling import NoRescaling
from fedmoe.models.tasks import TASKS

NAME, SHIFT = "default", "shift"
CONFIG = "adapter_config.json"
"""The file by which a folder is known as an adapter's."""
TOLERANCE = 1e-4


def export(adapter: Adapter, model: AdaptedModel, settings: ModelSettings, out: Path) -> float:
    """Write `adapter` to the folder `out` for `PeftModel.from_pretrained`.

    Returns the largest difference between the logits that PEFT computes with the folder and ours,
    in float32, at the model's full `top_k`.

    Raises:
        ModelError: see `check_export`; or the logits differ by 1e-4 or more: then nothing is left
            in `out`.
    """
    check_export(adapter, model)
    lora = _without_noise(adapter, model)
    exact = settings.__class__(path=settings.path, dtype="float32", device="cpu")
    unfinished = out.with_name(out.name + ".unfinished")
    try:
        with _quiet():
            base, _ = load_base(exact, fast=False)
            to_peft(lora, base).save_pretrained(str(unfinished))
            difference = largest_difference(adapter, model, exact, unfinished)
        if not difference < TOLERANCE:
            raise ModelError(
                f"PEFT's logits differ from ours by {difference:.2e}; expected under {TOLERANCE:g}"
            )
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Let no warning through that users cannot help."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads a name that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def load_export(folder: Path, base: str = "") -> tuple[AdaptedModel, Any, str]:
    """Return the base model with the adapter in a PEFT folder merged in, its tokenizer and path.

    Args:
        folder: an adapter's, such as `export` writes.
        base: the base model's path; empty for the one that the folder names.

    Raises:
        ModelError: there is no such base model, or PEFT cannot put the adapter on it.
    """
    try:
        path = base or json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
        model, tokenizer = load_base(ModelSettings(path=path, device="cpu"), fast=False)
        if family_of(model).install is through_interface:
            model.set_experts_implementation("eager")  # pyright: ignore[reportCallIssue]
        with _quiet():
            wrapped: Any = PeftModel.from_pretrained(model, str(folder))  # pyright: ignore
            merged = wrapped.merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: the adapter cannot be loaded: {error!s:.300}") from error
    install(merged)
    device = device_of(ModelSettings(path=path))
    map_tensors(merged, lambda tensor: tensor.to(device))
    return AdaptedModel(merged.eval(), LoRA(rank=1), NoRescaling(), TOP_K), tokenizer, path


def check_export(adapter: Adapter, model: AdaptedModel) -> None:
    """Refuse an adapter that PEFT cannot compute.

    Raises:
        ModelError: it has no form for the family's experts; the adapter modulates routers, or a
            gating changes what they choose.
    """
    if model.family.no_peft:
        raise ModelError(f"no export for PEFT: {model.family.no_peft}")
    if not model.gates.gating.own and model.gates.gating.serves:
        raise ModelError(
            f"PEFT would route by the model's own top-k, not by gating.name "
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


def _without_noise(adapter: Adapter, model: AdaptedModel) -> Adapter:
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
        linears += {path for name in experts for path in _each_linear(name, base, family)}
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


def _each_linear(name: str, base: nn.Module, family: Family) -> list[str]:
    """Return the paths of the linear layers, expert by expert, that a factor's name stands for."""
    path, weight, _ = name.rsplit(".", 2)
    assert family.linears is not None
    first, second = family.linears
    linear = second if weight == "down_proj" else first
    experts = each_expert(base.get_submodule(path), family.linears)
    return [f"{path}.{expert}.{linear}" for expert in experts]


def _one_by_one(values: dict[str, Tensor], base: nn.Module, family: Family) -> dict[str, Tensor]:
    """Return every factor by the path of its layer, where experts are separate modules."""
    split: dict[str, Tensor] = {}
    for name, view in values.items():
        if view.dim() == 3:
            paths = _each_linear(name, base, family)
            factor = name.rpartition(".")[2]
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
            target = _target(path, layer)
            a, b = values.pop(f"{target}.A"), values.pop(f"{target}.B")
            if a.dim() == 3 and family.form.transposed and not _takes_transposed(layer):
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


def _target(path: str, layer: LoraLayer) -> str:
    """Return the weight that a PEFT layer adapts, by our name."""
    parameter = getattr(layer, "parameter_name", None)
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
    return f"{path}.{parameter}" if parameter else path


def _takes_transposed(layer: LoraLayer) -> bool:
    """Return whether PEFT takes the weights for (experts, in, out), as the module tells it."""
    return bool(getattr(layer.get_base_layer(), "is_transposed", False))


def _peft_a(a: Tensor) -> Tensor:
    return a.reshape(-1, a.shape[-1])


def _peft_b(b: Tensor) -> Tensor:
    return b if b.dim() == 2 else b.permute(1, 2, 0).reshape(b.shape[1], -1)


@torch.no_grad()
def largest_difference(
    adapter: Adapter, model: AdaptedModel, settings: ModelSettings, folder: Path
) -> float:
    """Return how far the logits of `PeftModel.from_pretrained(folder)` are from ours."""
    base, _ = load_base(settings, fast=False)
    if model.family.install is through_interface:
        base.set_experts_implementation("eager")  # pyright: ignore[reportCallIssue]
    theirs = PeftModel.from_pretrained(base, str(folder)).eval()  # pyright: ignore[reportArgumentType]
    batch = model.form.sample(base)
    model.load(adapter)
    model.set_budget(model.full_top_k, torch.ones(model.layout.num_layers))
    ours = model.target_logits(batch)
    return (model.form.own_logits(theirs, batch).float() - ours.float()).abs().max().item()
