"""Adapters in PEFT's form: the weights that its layers adapt, and the factors of a saved folder.

PEFT 0.21 keeps the factors of fused experts as `A` (experts * rank, in), expert-major, and `B`
(out, rank * experts), expert-*minor*: slicing B the obvious way gives wrong weights. Its key names
do not tell which parameter a factor belongs to (wrappers nest), but each wrapper does.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedmoe.adapter import SHIFT
from fedmoe.errors import ModelError
from fedmoe.models.families.ungated import each_linear
from fedmoe.models.memory.meta import meta_base
from fedmoe.models.peft_experts import is_by_expert, stacked
from fedmoe.models.peft_layers import NAME, takes_transposed, target_of

if TYPE_CHECKING:
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.build import ModelSettings
    from fedmoe.models.families import Family

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


class Factors(NamedTuple):
    """The factors of one weight, or of a layer's stacked experts; a change is `scale * B A`."""

    A: Tensor  # (*experts, rank, in)
    B: Tensor  # (*experts, out, rank)
    scale: float


class PeftFolder(NamedTuple):
    """A saved adapter by our names."""

    factors: dict[str, Factors]
    """By weight, such as `model.layers.0.mlp.experts.down_proj`."""
    shifts: dict[str, Tensor]
    """By router, such as `model.layers.0.mlp.gate.shift`: its saved weight less the base's."""
    base: str
    """The base model's path, as it was written down."""


def read_peft(folder: Path, model: AdaptedModel, settings: ModelSettings) -> PeftFolder:
    """Return the LoRA factors in a PEFT folder for this base model; no second copy of it is made.

    Raises:
        ModelError: the folder is damaged, or holds more than LoRA's factors and whole routers.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} is no PEFT folder with {WEIGHTS} ({reason})") from error
    if not isinstance(config, LoraConfig) or config.use_dora:
        kind = "DoRA" if isinstance(config, LoraConfig) else config.peft_type
        raise ModelError(f"{folder} is of {kind!s}; only plain LoRA can be loaded")
    found = PeftFolder({}, {}, str(config.base_model_name_or_path or ""))
    family = model.family
    layers = {name.removeprefix(PREFIX).rpartition(".lora_")[0]: name for name in tensors}
    if family.linears is None and is_by_expert([*layers]):
        return found._replace(factors=_by_expert(tensors, [*layers], config, model))
    for path, layer in _wrapped(config, settings, folder).named_modules():
        if isinstance(layer, LoraLayer) and NAME in layer.lora_A:
            keys = [f"{PREFIX}{path}.lora_{factor}.weight" for factor in "AB"]
            if {*keys} <= {*tensors}:
                a, b = (tensors.pop(key).float() for key in keys)
                target = target_of(path, layer)
                a, b = _ours(a, b, layer, family)
                found.factors[target] = Factors(a, b, layer.scaling[NAME])
        elif (key := f"{PREFIX}{path}.weight") in tensors and model.shifts:
            found.shifts[f"{path}.{SHIFT}"] = tensors.pop(key).float() - _router(model, path)
    if tensors:
        raise ModelError(
            f"{folder}: {len(tensors)} tensors have no place, such as {sorted(tensors)[0]}"
            + ("; set adapter.router to true" if config.modules_to_save else "")
        )
    return found if family.linears is None else _stacked(found, model, meta_base(settings))


def _by_expert(
    tensors: dict[str, Tensor], layers: list[str], config: LoraConfig, model: AdaptedModel
) -> dict[str, Factors]:
    """Return the factors of a folder whose experts are not fused; its key names tell all."""
    if config.alpha_pattern or model.family.form.transposed or not model.family.form.gated:
        raise ModelError("factors expert by expert have no fused form in this family")
    pairs, scales = {}, {}
    for layer in layers:
        keys = [f"{PREFIX}{layer}.lora_{factor}.weight" for factor in "AB"]
        if not {*keys} <= {*tensors}:
            raise ModelError(f"{layer} has no pair of factors")
        pairs[layer] = tensors[keys[0]].float(), tensors[keys[1]].float()
        scales[layer] = config.lora_alpha / len(pairs[layer][0]) ** (1 - config.use_rslora / 2)
    if len({*scales.values()}) > 1:
        raise ModelError("factors expert by expert are of several ranks; expected one")
    found = stacked(pairs, model.layout.num_experts)
    scale = next(iter(scales.values()))
    return {weight: Factors(a, b, scale) for weight, (a, b) in found.items()}


def _wrapped(config: LoraConfig, settings: ModelSettings, folder: Path) -> nn.Module:
    """Return the base model as shapes alone, with PEFT's layers in it."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # PEFT 0.21 reads a name that transformers 5.23 deprecates, which users cannot help.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            return get_peft_model(meta_base(settings), config).get_base_model()  # pyright: ignore
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{folder} does not fit model.path {settings.path!r}: {reason}") from error


def _router(model: AdaptedModel, path: str) -> Tensor:
    """Return the frozen weight of the router at a path."""
    (layer,) = (x for x in model.layers if x.router_path == path)
    return layer.scorer.parametrizations.weight.original.float().cpu()  # pyright: ignore


def _ours(a: Tensor, b: Tensor, layer: LoraLayer, family: Family) -> tuple[Tensor, Tensor]:
    """Return the factors in our form: experts' are stacked, (experts, rank, in) and so on."""
    if not getattr(layer, "parameter_name", None):
        return a, b
    rank = layer.r[NAME]
    a = a.view(-1, rank, a.shape[1])
    b = b.view(b.shape[0], rank, -1).permute(2, 0, 1)
    if family.form.transposed and not takes_transposed(layer):
        a, b = b.mT, a.mT  # the delta of W^T is A^T B^T
    return a.contiguous(), b.contiguous()


def _stacked(found: PeftFolder, model: AdaptedModel, base: nn.Module) -> PeftFolder:
    """Return the factors of experts that are separate modules as stacks."""
    factors = dict(found.factors)
    for layer in model.layers:
        for weight in layer.weight_names:
            paths = each_linear(f"{layer.path}.{weight}", base, model.family)
            parts = [factors.pop(path, None) for path in paths]
            if whole := [part for part in parts if part]:
                if len(whole) < len(parts):
                    raise ModelError(f"{layer.path}.{weight}: some experts have factors, not all")
                a, b = (torch.stack([part[i] for part in whole]) for i in (0, 1))  # pyright: ignore
                factors[f"{layer.path}.{weight}"] = Factors(a, b, whole[0].scale)
    return found._replace(factors=factors)
