"""The forms that a model's frozen experts exist in, and the one that it computes with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from fedmoe.models.expert_state import ExpertState
from fedmoe.models.families import MoELayer
from fedmoe.models.memory.offload import mapped, pinned
from fedmoe.models.memory.stored import Elsewhere, Frozen, Stored, quantised

SAMPLES = 4096
"""Values of each tensor, or a few more, that enter the model's digest: it must not read 14 GB."""
ELSEWHERE = ("transformers_version", "dtype", "torch_dtype", "architectures")
"""Of a model's configuration, what does not change what it computes, or is said otherwise."""
Form = tuple[Stored, Stored] | None
"""One layer's weights in another form; None for the parameters as they are."""


class FrozenExperts:
    """The frozen experts of a model, in as many forms as its budgets ask for.

    A small device holds one form. Where one model stands for devices of several kinds it holds all
    of their forms: arithmetic is what each device's would be, and memory is not saved.
    """

    def __init__(self, layers: list[MoELayer], states: list[ExpertState], device: torch.device):
        self.layers, self.states, self.device = layers, states, device
        self.on_gpu = device.type == "cuda"
        self.forms: dict[Frozen, list[Form]] = {"full": [None] * len(layers)}
        self.used: Frozen = "full"

    def hold(self, wanted: Mapping[Frozen, bool]) -> None:
        """Make the forms `wanted`, let go of all others, and compute with the first.

        Layer by layer: beside what was loaded and what is made, one layer exists twice. Weights
        that are to be quantised or offloaded may still be in main memory, see `build_model`; they
        then never exist in full on a GPU.

        Args:
            wanted: whether each form is to be offloaded: a quantised one, and that of a GPU, are
                kept in another place, see `offload`; full weights on a processor are mapped.

        Raises:
            ModelError: this model's rows cannot be grouped for 4 bits, or offload has no room.
        """
        assert wanted, "a model computes with its experts in some form"
        assert "full" in self.forms, "the full weights are gone; load the model again"
        self.forms = {frozen: [] for frozen in wanted}
        for layer in self.layers:
            for frozen, offloaded in wanted.items():
                self.forms[frozen].append(self._form(layer, frozen, offloaded))
            as_they_are = "full" in wanted and self.forms["full"][-1] is None
            if not as_they_are:
                _let_go(layer)
        self.use(next(iter(wanted)))

    def use(self, frozen: Frozen) -> None:
        """Compute with this form from now on; it is one of those stored."""
        assert frozen in self.forms, (frozen, list(self.forms))
        self.used = frozen
        for state, form in zip(self.states, self.forms[frozen], strict=True):
            state.stored = form

    def narrow(self, kept: Tensor | None) -> None:
        """Have the experts that `kept`, bool (layers, experts), marks on the device; None for all.

        Of a form that lies in main memory beside a GPU theirs are copied there, until the next
        `use` or `narrow`. A processor copies nothing: the system reads what is used of a file.
        """
        for i, (state, form) in enumerate(zip(self.states, self.forms[self.used], strict=True)):
            state.stored = form
            if kept is not None and form is not None and self._lies_elsewhere(form):
                first, second = (stored.narrowed(kept[i]) for stored in form)
                state.stored = first, second

    def _lies_elsewhere(self, form: tuple[Stored, Stored]) -> bool:
        return self.on_gpu and form[0].is_elsewhere

    def num_bytes(self, frozen: Frozen) -> int:
        """Bytes of all experts in a form that is stored, wherever they lie."""
        pairs = zip(self.layers, self.forms[frozen], strict=True)
        kept = (form or weights_of(layer) for layer, form in pairs)
        return sum(
            x.nbytes if isinstance(x, Tensor) else x.num_bytes for both in kept for x in both
        )

    def _form(self, layer: MoELayer, frozen: Frozen, offloaded: bool) -> Form:
        place = pinned if self.on_gpu else mapped
        gate_up, down = weights_of(layer)
        if frozen != "full":
            both = (quantised(w.to(self.device), frozen) for w in (gate_up, down))
            first, second = (stored.placed(place) if offloaded else stored for stored in both)
            return first, second
        if offloaded and self.on_gpu:
            return Elsewhere(self.device, pinned(gate_up)), Elsewhere(self.device, pinned(down))
        for weights in (gate_up, down):
            weights.data = mapped(weights) if offloaded else weights.to(self.device)
        return None


def forms_of(asked: Iterable[tuple[Frozen, bool]]) -> dict[Frozen, bool]:
    """What to `hold` for devices that ask for (form, offloaded): one place for each form.

    A form is offloaded where all who use it ask for that: to compute from elsewhere changes no bit.
    """
    wanted: dict[Frozen, bool] = {}
    for frozen, offloaded in asked:
        wanted[frozen] = offloaded and wanted.get(frozen, True)
    return wanted


def weights_of(layer: MoELayer) -> tuple[nn.Parameter, nn.Parameter]:
    """The frozen weights of a layer's experts, which can be stored in other forms."""
    gate_up, down = (getattr(layer.experts, name) for name in layer.weight_names)
    return gate_up, down


def frozen_digest(model: nn.Module) -> str:
    """A digest of a model's settings and of every frozen tensor's name, shape, type and values.

    Of a large tensor it has some values, of a small one, such as a router's bias, all. To be taken
    before `FrozenExperts.hold`, which lets go of weights that no budget asks for.
    """
    digest = hashlib.sha256(_settings(model).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.requires_grad:  # LoRA's own
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        flat = tensor.detach().reshape(-1)
        chosen = flat[:: max(1, flat.numel() // SAMPLES)].float().cpu()
        digest.update(chosen.numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings(model: nn.Module) -> str:
    """What the model's configuration says, but for where it is from and how it is computed."""
    config = getattr(model, "config", None)
    said = config.to_dict() if isinstance(config, PretrainedConfig) else {}
    kept = {k: v for k, v in said.items() if k[0] != "_" and k not in ELSEWHERE}
    return json.dumps(kept, sort_keys=True, default=str)


def _let_go(layer: MoELayer) -> None:
    """Keep the shapes of a layer's weights, and not the weights."""
    for name in layer.weight_names:
        shape = torch.empty_like(getattr(layer.experts, name), device="meta")
        setattr(layer.experts, name, nn.Parameter(shape, requires_grad=False))
