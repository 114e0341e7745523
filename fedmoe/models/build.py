"""Load a model and its tokenizer: the built-in base, a folder, or a Hugging Face id."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from fedmoe.errors import FedMoEError, FedMoEWarning, ModelError
from fedmoe.models.adapted import TOP_K, AdaptedModel, LoRA
from fedmoe.models.captured import Graphs
from fedmoe.models.conventions import (
    precision_warnings,
    take_greedy,
    tokenizer_faults,
    tokenizer_warnings,
)
from fedmoe.models.families import check_family, install, moe_layers
from fedmoe.models.folder import (
    ADAPTER,
    MINI,
    cannot_load,
    check_config,
    model_folder,
    opened,
    weight_faults,
    weight_warnings,
)
from fedmoe.models.gating import Rule
from fedmoe.models.kernels import check_kernels
from fedmoe.models.memory.frozen import weights_of
from fedmoe.models.memory.offload import mapped
from fedmoe.models.private import map_tensors, placed_while_loading
from fedmoe.models.rescaling import Rescaling
from fedmoe.models.tasks import TASKS, task_of
from fedmoe.section import section

__all__ = ["DTYPES", "MINI", "ModelSettings", "build_model", "device_of", "load_base"]
__all__ += ["model_folder"]

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
    kernels: Literal["torch", "triton"] = "torch"
    """Kernels of the experts on a GPU: torch's grouped products, or Triton's, which fuse gather,
    products, gate and sum; equal within rounding. Where those have no form (biases, gates that are
    not SiLU's, LoRA dropout, recomputation, 4 bits, offload) torch's compute, too."""
    graphs: bool = False
    """Capture AdamW's training steps as CUDA graphs, one for each budget and shape of batch, so
    that a GPU does not wait for its kernels to be started; batches are padded to few shapes. Steps
    that cannot be captured are started as ever, which a warning tells."""


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
    settings: ModelSettings, *, experts_stay: bool = False, offload: bool = False, fast: bool = True
) -> tuple[nn.Module, Any]:
    """Return the frozen model on the expert fast path, and its tokenizer.

    With `experts_stay` the experts remain in main memory, whatever the device; with `offload` they
    are in mapped files while it loads, and the memory this takes is that of one of their weights;
    without `fast` the model is transformers' own.

    Raises:
        ModelError: the path does not exist, is no model of a form of task that is known here, or
            is not an MoE whose experts transformers dispatches on; there is no such device.
    """
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    device = device_of(settings)
    disable_progress_bar()
    form, dtype, what = TASKS["causal"], DTYPES[settings.dtype], ""
    try:
        with opened(settings.path) as folder:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            check_family(config.model_type)
            check_config(settings.path, config)
            form = task_of(config.model_type)
            stored = getattr(config, "dtype", None)  # loading changes it
            with placed_while_loading(_experts_mapped) if offload else nullcontext():
                model, info = form.load(folder, config, dtype)
            what = "tokenizer"
            tokenizer = form.tokenizer(folder, config)
    except (FedMoEError, MemoryError, torch.OutOfMemoryError):
        raise
    # Libraries raise whatever a file of a model makes of their code: KeyError, TypeError and more.
    except Exception as error:
        raise ModelError(cannot_load(settings.path, what or form.kind, error)) from error
    name = model_folder(settings.path)
    model.name_or_path = name  # pyright: ignore[reportArgumentType]
    _check_loaded(settings, model, tokenizer, info, stored)
    if fast:
        install(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    stay = {id(w) for x in moe_layers(model) for w in weights_of(x)} if experts_stay else set()
    map_tensors(model, lambda tensor: tensor if id(tensor) in stay else tensor.to(device))
    return model, tokenizer


def _experts_mapped(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight in a mapped file if it is one of all experts, which have three dimensions."""
    return mapped(weight) if weight.dim() == 3 else weight


def checkpoint_folder(path: str) -> Path:
    """Return the folder with the files of a model that was loaded before, from the Hub too."""
    from transformers.utils.hub import cached_file

    folder = Path(model_folder(path))
    return folder if folder.is_dir() else Path(cached_file(path, "config.json")).parent  # pyright: ignore


def skeleton(path: str) -> nn.Module:
    """Return transformers' own model of a folder that was checked before, without its weights."""
    from transformers import AutoConfig

    with opened(path) as folder:
        config = AutoConfig.from_pretrained(folder)
        kind = task_of(config.model_type).auto
        return kind.from_pretrained(folder, config=config, device_map="meta")


def _check_loaded(
    settings: ModelSettings, model: Any, tokenizer: Any, info: Any, stored: Any
) -> None:
    """Refuse a model or a tokenizer that is not whole, and warn of what is not followed.

    This is the one place for it: every command and every node loads its model here.

    Raises:
        ModelError: with every fault.
    """
    path, folder = settings.path, Path(model_folder(settings.path))
    faults = [*weight_faults(info)]
    said = [*weight_warnings(info), *precision_warnings(stored, DTYPES[settings.dtype])]
    if hasattr(tokenizer, "get_vocab"):
        rows = model.get_input_embeddings().weight.shape[0]
        faults += tokenizer_faults(tokenizer, folder, rows)
        said += tokenizer_warnings(tokenizer, model) if not faults else ()
    said += take_greedy(model)
    if getattr(model, "_hf_peft_config_loaded", False):
        faults.append("it comes with an adapter; download it without adapter_config.json")
    if faults:
        raise ModelError(f"model.path {path!r}: {'; '.join(faults)}")
    if (folder / ADAPTER).is_file():
        said.append(
            "the folder also holds an adapter, which is not loaded, but the model without it; to "
            "start from it set adapter.start to this folder"
        )
    if getattr(model.config, "auto_map", None):
        said.append("its config names code in its folder, which is not run: transformers' own is")
    for sentence in said:
        warnings.warn(f"model.path {path!r}: {sentence}", FedMoEWarning, stacklevel=3)


def build_model(
    settings: ModelSettings,
    adapter: LoRA,
    rescaling: Rescaling,
    gating: Rule = TOP_K,
    *,
    experts_stay: bool = False,
    offload: bool = False,
) -> tuple[AdaptedModel, Any]:
    """Return the resident model of a run and its tokenizer; see `load_base` for the errors.

    With `experts_stay`, `model.frozen.hold` must bring the experts to the device, in some form.
    """
    check_kernels(settings, device_of(settings).type == "cuda")
    base, tokenizer = load_base(settings, experts_stay=experts_stay, offload=offload)
    model = AdaptedModel(base, adapter, rescaling, gating)
    for state in model.states:
        state.fused = settings.kernels == "triton"
    model.graphs = Graphs(model) if settings.graphs else None
    return model, tokenizer
