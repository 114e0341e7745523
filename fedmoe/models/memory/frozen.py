"""The forms that a model's frozen experts exist in, and the one that it computes with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fedmoe.models.expert_state import ExpertState
from fedmoe.models.families import MoELayer
from fedmoe.models.memory.offload import give_up, is_mapped, mapped, pinned
from fedmoe.models.memory.paging import LayerPages, linked
from fedmoe.models.memory.stored import Elsewhere, Frozen, Quantised, Stored, quantised

SAMPLES = 4096
"""Values of each tensor, or a few more, that enter the model's digest: it must not read 14 GB."""
ELSEWHERE = ("transformers_version", "dtype", "torch_dtype", "architectures")
"""Settings of a model's configuration that do not change its results, or enter in another way."""
Form = tuple[Stored, Stored] | None
"""One layer's weights in another form; None for the parameters as they are."""


class FrozenExperts:
    """The frozen experts of a model, in as many forms as its budgets request.

    A small device has one form. A model that stands for devices of several kinds has all of their
    forms: each computes as its device would, and no memory is saved.
    """

    def __init__(self, layers: list[MoELayer], states: list[ExpertState], device: torch.device):
        self.layers, self.states, self.device = layers, states, device
        self.on_gpu = device.type == "cuda"
        self.forms: dict[Frozen, list[Form]] = {"full": [None] * len(layers)}
        self.used: Frozen = "full"
        self.none = [None] * len(layers)
        self.pages: dict[Frozen, list[LayerPages]] = {}
        """Of the forms whose pages are looked after."""

    def hold(self, wanted: Mapping[Frozen, bool], *, paged: bool = False) -> None:
        """Make the forms `wanted`, drop all others, and compute with the first.

        It works layer by layer: apart from the loaded and the new forms, one layer exists twice.
        Weights to be quantised or offloaded may still be in main memory, see `build_model`; then
        they never exist in full on a GPU.

        Args:
            wanted: the forms, and whether each is to be offloaded: a quantised one, and that of a
                GPU, are stored elsewhere, see `offload`; full weights on a processor are mapped.
            paged: read mapped experts as soon as the router has chosen, and have few of them in
                memory: for answers, whose tokens come one by one; see `LayerPages`.

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
        paged = paged and not self.on_gpu
        self.pages = {form: self._paged(form) for form, away in wanted.items() if away and paged}
        self.use(next(iter(wanted)))

    def use(self, frozen: Frozen) -> None:
        """Compute with this form from now on; it must be one of those made."""
        assert frozen in self.forms, (frozen, list(self.forms))
        self.used = frozen
        for state, form in zip(self.states, self.forms[frozen], strict=True):
            state.stored = form
        for state, pages in zip(self.states, self.pages.get(frozen) or self.none, strict=True):
            state.pages = pages

    def narrow(self, kept: Tensor | None) -> None:
        """Bring the experts that `kept`, bool (layers, experts), marks to the device; None for all.

        A form in main memory beside a GPU is copied there for them, until the next `use` or
        `narrow`. A processor copies nothing: the system reads the used parts of a file.
        """
        for i, (state, form) in enumerate(zip(self.states, self.forms[self.used], strict=True)):
            state.stored = form
            if kept is not None and form is not None and self._is_elsewhere(form):
                first, second = (stored.narrowed(kept[i]) for stored in form)
                state.stored = first, second

    def _is_elsewhere(self, form: tuple[Stored, Stored]) -> bool:
        return self.on_gpu and form[0].is_elsewhere

    def num_bytes(self, frozen: Frozen) -> int:
        """Return the bytes of all experts in a form, wherever they are stored."""
        pairs = zip(self.layers, self.forms[frozen], strict=True)
        kept = (form or weights_of(layer) for layer, form in pairs)
        return sum(
            x.nbytes if isinstance(x, Tensor) else x.num_bytes for both in kept for x in both
        )

    def _paged(self, frozen: Frozen) -> list[LayerPages]:
        """Return the pages of a form whose weights are all in mapped files."""
        pairs = zip(self.layers, self.forms[frozen], strict=True)
        return linked([LayerPages([*_tensors(form or weights_of(x))]) for x, form in pairs])

    def _form(self, layer: MoELayer, frozen: Frozen, offloaded: bool) -> Form:
        place = pinned if self.on_gpu else mapped
        gate_up, down = weights_of(layer)
        if frozen != "full":
            both = [quantised(w.to(self.device), frozen) for w in (gate_up, down)]
            for weights in filter(is_mapped, (gate_up, down)):
                give_up(weights)
            first, second = (stored.placed(place) if offloaded else stored for stored in both)
            return first, second
        if offloaded and self.on_gpu:
            return Elsewhere(self.device, pinned(gate_up)), Elsewhere(self.device, pinned(down))
        for weights in (gate_up, down):
            weights.data = mapped(weights) if offloaded else weights.to(self.device)
        return None


def forms_of(requests: Iterable[tuple[Frozen, bool]]) -> dict[Frozen, bool]:
    """Return the forms to `hold` for devices that request (form, offloaded).

    A form is offloaded where all its users request that; the results are bitwise identical.
    """
    wanted: dict[Frozen, bool] = {}
    for frozen, offloaded in requests:
        wanted[frozen] = offloaded and wanted.get(frozen, True)
    return wanted


def weights_of(layer: MoELayer) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the frozen weights of a layer's experts, which can be stored in other forms."""
    gate_up, down = (getattr(layer.experts, name) for name in layer.weight_names)
    return gate_up, down


def _tensors(both: Iterable[Tensor | Stored]) -> Iterator[Tensor]:
    """Yield the tensors of a layer's two weights in some form."""
    for one in both:
        if isinstance(one, Quantised):
            yield from (one.codes, one.scales)
        elif isinstance(one, Tensor):
            yield one.detach()


def frozen_digest(model: nn.Module) -> str:
    """Return a digest of a model's settings and of each frozen tensor's name, shape, type, values.

    It covers all values of a small tensor, such as a router's bias, and a sample of a large one.
    Take it before `FrozenExperts.hold`, which drops weights that no budget requests.
    """
    digest = hashlib.sha256(_settings(model).encode())
    for name, tensor in sorted(_by_plain_name(model), key=lambda pair: pair[0]):
        if tensor.requires_grad:  # LoRA's own
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        flat = tensor.detach().reshape(-1)
        chosen = flat[:: max(1, flat.numel() // SAMPLES)].float().cpu()
        digest.update(chosen.numpy().tobytes())
    return digest.hexdigest()[:16]


def _by_plain_name(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor by the name that it has where nothing wraps it."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        plain = name.replace(".parametrizations.weight.original", ".weight")
        yield plain.replace(".base.", "."), tensor


def _settings(model: nn.Module) -> str:
    """Return the model's configuration, without its origin and how it is computed."""
    config = getattr(model, "config", None)
    said = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    kept = {k: v for k, v in said.items() if k[0] != "_" and k not in ELSEWHERE}
    return json.dumps(kept, sort_keys=True, default=str)


def _let_go(layer: MoELayer) -> None:
    """Keep the shapes of a layer's weights, and not the weights."""
    for name in layer.weight_names:
        shape = torch.empty_like(getattr(layer.experts, name), device="meta")
        setattr(layer.experts, name, nn.Parameter(shape, requires_grad=False))
