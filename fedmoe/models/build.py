"""Load a model and its tokenizer: the built-in base, a folder, or a Hugging Face id."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from fedmoe.errors import ModelError
from fedmoe.models.adapted import TOP_K, AdaptedModel, LoRA
from fedmoe.models.families import check_family, install, moe_layers
from fedmoe.models.gating import Rule
from fedmoe.models.memory.frozen import weights_of
from fedmoe.models.private import map_tensors
from fedmoe.models.rescaling import Rescaling
from fedmoe.models.tasks import TASKS, task_of
from fedmoe.section import section

MINI = "mini"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@section
class ModelSettings:
    """The frozen base model."""

    path: Annotated[str, Field(min_length=1)] = MINI
    """`mini` (the small OLMoE-architecture model inside this package), a folder, or a Hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights and of the computation; LoRA itself is stored in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; `auto` takes a GPU if there is one. On a CPU equal runs are bitwise
    identical; on a GPU attention's backward may differ."""


def model_folder(path: str) -> str:
    """Return the folder of the built-in model for `mini`, and any other `path` as it is."""
    return str(files("fedmoe.models") / "mini") if path == MINI else path


def device_of(settings: ModelSettings) -> torch.device:
    """Return the device that `settings.device` means on this machine.

    Raises:
        ModelError: a GPU is requested and there is none.
    """
    if settings.device == "cpu":
        return torch.device("cpu")
    found = torch.cuda.is_available()
    if settings.device == "cuda" and not found:
        raise ModelError("model.device is 'cuda', but torch finds no GPU here; use 'cpu' or 'auto'")
    return torch.device("cuda" if found else "cpu")


def load_base(
    settings: ModelSettings, *, experts_stay: bool = False, fast: bool = True
) -> tuple[nn.Module, Any]:
    """Return the frozen model on the expert fast path, and its tokenizer or image encoder.

    With `experts_stay` the experts remain in main memory, whatever the device; without `fast` the
    model is transformers' own.

    Raises:
        ModelError: the path does not exist, is no model of a form of task that is known here, or
            is not an MoE whose experts transformers dispatches on; there is no such device.
    """
    device = device_of(settings)
    disable_progress_bar()
    folder, form = model_folder(settings.path), TASKS["causal"]
    try:
        config = AutoConfig.from_pretrained(folder)
        check_family(config.model_type)
        form = task_of(config.model_type)
        model, info = form.load(folder, config, DTYPES[settings.dtype])
        tokenizer = form.tokenizer(folder, config)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(_cannot_load(settings.path, form.kind, error)) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"model.path {settings.path!r}: {len(missing)} weights are missing, such as "
            f"{missing[0]}; transformers would make them up"
        )
    if fast:
        install(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stay = {id(w) for x in moe_layers(model) for w in weights_of(x)} if experts_stay else set()
    map_tensors(model, lambda tensor: tensor if id(tensor) in stay else tensor.to(device))
    return model, tokenizer


def _cannot_load(path: str, kind: str, error: Exception) -> str:
    """Return an error's text: no folder, no model in it, or no such id on the Hub."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if Path(path).is_dir():
        return f"model.path {path!r}: the folder holds no {kind} ({reason})"
    if path.startswith((".", "/")):  # no id of the Hub does
        names = [p.name for p in Path(path).parent.glob("*") if p.is_dir()]
        near = get_close_matches(Path(path).name, names, n=1)
        hint = f"; did you mean {str(Path(path).with_name(near[0]))!r}?" if near else ""
        return f"model.path {path!r}: there is no such folder{hint}"
    return (
        f"model.path {path!r} is neither {MINI!r}, nor a folder, nor a Hugging Face id that can be "
        f"loaded ({reason})"
    )


def build_model(
    settings: ModelSettings,
    adapter: LoRA,
    rescaling: Rescaling,
    gating: Rule = TOP_K,
    *,
    experts_stay: bool = False,
) -> tuple[AdaptedModel, Any]:
    """Return the resident model of a run and its tokenizer; see `load_base` for the errors.

    With `experts_stay`, `model.frozen.hold` must bring the experts to the device, in some form.
    """
    model, tokenizer = load_base(settings, experts_stay=experts_stay)
    return AdaptedModel(model, adapter, rescaling, gating), tokenizer
