"""The kernels that compute experts on a GPU: what a config asks for, and where another computes.

Triton's (`fused`) have no form for some settings; torch's compute there, and `kernels_note` says
where and why. What cannot run at all is refused: nothing falls back without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from fedmoe.errors import ModelError
from fedmoe.models.experts import biases_of, gate_of, is_silu
from fedmoe.models.routed import route

if TYPE_CHECKING:
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.build import ModelSettings
    from fedmoe.models.memory.stored import Frozen

HOW = "pip install 'fedmoe[triton]'; or use 'torch'"


def check_kernels(settings: ModelSettings, on_gpu: bool) -> None:
    """Refuse what speeds a GPU up where there is none, and Triton's kernels where they do not run.

    Raises:
        ModelError: with the likely fix.
    """
    if settings.graphs and not on_gpu:
        raise ModelError("model.graphs is for a GPU, and this model is on a CPU; use false")
    if settings.kernels == "torch":
        return
    if not on_gpu:
        raise ModelError("model.kernels 'triton' is for a GPU; on a CPU use 'torch'")
    if find_spec("triton") is None:
        raise ModelError(f"model.kernels 'triton' needs Triton, which is not installed: {HOW}")
    try_out(torch.device("cuda"))


def try_out(device: torch.device) -> None:
    """Compute two tokens with Triton's kernels: they are compiled on their machine, or cannot be.

    Raises:
        ModelError: with Triton's reason.
    """
    try:
        from fedmoe.models.fused import FusedExperts

        x, index = torch.ones(2, 16, device=device), torch.zeros(2, 1).long().to(device)
        w1, w2 = x.new_ones(1, 32, 16), x.new_ones(1, 16, 16)
        lora = [x.new_ones(1, *shape) for shape in ((1, 16), (32, 1), (1, 16), (16, 1))]
        out = FusedExperts.apply(x, x[:, :1], *lora, 1.0, route(index, 1), (w1, w2))
        assert isinstance(out, torch.Tensor)
        whole = bool(out.isfinite().all())
    # A compiler that is missing, a driver that is too old: Triton raises whatever that makes of it.
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(
            f"model.kernels 'triton': its kernels cannot be compiled or run here ({said}). They "
            "need a C compiler and a Triton that fits torch and the driver; or use 'torch'"
        ) from error
    assert whole, out


def kernels_note(
    model: AdaptedModel, kernels: str, tiers: Mapping[str, tuple[Frozen, bool, bool]]
) -> str | None:
    """Return which kernels compute the experts, and why; None on a processor, which has no choice.

    Args:
        model: on its device.
        kernels: `model.kernels`.
        tiers: by name: the form of frozen experts, whether they are elsewhere or in part left out,
            and whether activations are recomputed in training.
    """
    if model.device.type != "cuda":
        return None
    if kernels == "torch":
        found = "model.kernels=triton would fuse them" if find_spec("triton") else "the default"
        return f"experts are computed by torch's grouped products (model.kernels: torch; {found})"
    if reason := _no_form(model):
        return f"experts are computed by torch, although model.kernels is 'triton': {reason}"
    apart = {name: said for name, tier in tiers.items() if (said := _of_tier(*tier))}
    note = "experts are computed by Triton's kernels (model.kernels: triton)"
    if model.dropout:
        note += "; in training by torch, as LoRA drops inputs (adapter.dropout)"
    return note + "".join(f"; in tier {name} by torch: {said}" for name, said in apart.items())


def _no_form(model: AdaptedModel) -> str:
    """Return why the kernels can compute no layer of a model; nothing where they can."""
    experts = [layer.experts for layer in model.layers]
    if any(biases_of(module) is not None for module in experts):
        return "these experts have biases"
    return "" if all(is_silu(gate_of(x)) for x in experts) else "their gate is not that of SiLU"


def _of_tier(frozen: Frozen, elsewhere: bool, recompute: bool) -> str:
    if frozen == "int4":
        return "its experts are of 4 bits"
    if elsewhere:
        return "its experts are offloaded, or a subset"
    return "activations are recomputed, in training" if recompute else ""
