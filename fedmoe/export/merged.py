"""A model with an adapter merged into its weights, in the names and files of the base's checkpoint.

One weight at a time is read, changed and written, with the changes of one layer beside it: memory
is that of a few layers, whatever the size of the model.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.export.changes import Change, in_checkpoint

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2}
"""Bytes of a value, by the names of safetensors; 1 for all others."""
TORCH = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
"""Names that configs have for the number of experts that a token activates."""


@dataclass(frozen=True)
class Merge:
    """An adapter to be merged into a checkpoint."""

    base: nn.Module
    """The model as transformers builds it from the checkpoint; its weights are not read."""
    changes: list[Change]
    scale: float
    factors: Mapping[str, float]
    """Factors on the outputs of experts, by their path; they go into the experts' last weights."""
    source: Path
    """The folder of the checkpoint."""
    dtype: str | None = None
    """Of the weights that are written; as they are in the checkpoint when omitted."""
    untie: bool = True
    """Write the output head out where it shares the embeddings' weights."""
    _cache: dict[int | None, dict[str, Tensor]] = field(default_factory=dict)
    _open: dict[str, Any] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Write the weights into the folder `out`, in the checkpoint's files.

        Raises:
            ModelError: the checkpoint is not made of safetensors, or lacks a weight that changes.
        """
        files = self._files()
        places: dict[str, str] = {}
        total = 0
        for name in files:
            header = self._header(name)
            sizes = _write(out / name, header, self._tensors(name, header))
            places |= dict.fromkeys(sizes, name)
            total += sum(sizes.values())
        if missing := sorted({*self.layer_of} - {*places}):
            raise ModelError(
                f"{self.source.name} has no weight {missing[0]} to merge into, and "
                f"{len(missing) - 1} such more: its checkpoint has another form; load it with "
                "transformers, save it in bfloat16, and train from that folder"
            )
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    @cached_property
    def layer_of(self) -> dict[str, int | None]:
        """Return the weights of the checkpoint that change, and the layer that each is in."""
        names: dict[str, int | None] = {}
        for layer in dict.fromkeys(change.layer for change in self.changes):
            nothing = torch.zeros(())  # names need no products
            shapes = {c.weight: nothing.expand(c.shape) for c in self.changes if c.layer == layer}
            names |= dict.fromkeys(in_checkpoint(self.base, shapes), layer)
        return names | {name: None for name in self._scaled if name not in names}

    @cached_property
    def _scaled(self) -> dict[str, float]:
        """Return the factor of each weight of the checkpoint that one applies to."""
        found: dict[str, float] = {}
        for name, weight in self.base.named_parameters():
            path, _, last = name.rpartition(".down_proj")
            if path and last in ("", "_bias") and (factor := self.factors.get(path, 1.0)) != 1:
                stored = in_checkpoint(self.base, {name: torch.zeros(()).expand(weight.shape)})
                found |= dict.fromkeys(stored, factor)
        return found

    def weights(self) -> dict[str, list[int]]:
        """Return the shapes of all weights that are written, by their names."""
        files = self._files()
        return {key: shape for name in files for key, (_, shape) in self._header(name).items()}

    def weight(self, name: str) -> Tensor:
        """Return a weight with its change."""
        stored = {head: embeddings for embeddings, head in self._tied.items()}.get(name, name)
        return self._merged(stored, self._reader(self._place[stored]).get_tensor(stored))

    @cached_property
    def _place(self) -> dict[str, str]:
        """Return the file of each weight of the checkpoint."""
        return {key: name for name in self._files() for key in self._reader(name).keys()}  # noqa: SIM118

    def _reader(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.source / name, "pt")
        return self._open[name]

    def _layer(self, layer: int | None) -> dict[str, Tensor]:
        """Return one layer's changes by the names of the checkpoint."""
        if layer not in self._cache:
            self._cache.clear()
            dense = {c.weight: c.dense(self.scale) for c in self.changes if c.layer == layer}
            self._cache[layer] = in_checkpoint(self.base, dense)
        return self._cache[layer]

    def _files(self) -> list[str]:
        if (index := self.source / INDEX).is_file():
            return sorted({*json.loads(index.read_text())["weight_map"].values()})
        if not (self.source / SINGLE).is_file():
            raise ModelError(f"{self.source.name} holds no {SINGLE}, nor an index of several")
        return [SINGLE]

    @cached_property
    def _tied(self) -> dict[str, str]:
        """Return the output head by the name of the embeddings that are its weights, if they are.

        Some engines do not know tied embeddings, and answer one token for ever without a word.
        """
        if not (self.untie and getattr(self.base.config, "tie_word_embeddings", False)):
            return {}
        names = {id(module): f"{name}.weight" for name, module in self.base.named_modules()}
        both = (self.base.get_input_embeddings(), self.base.get_output_embeddings())  # pyright: ignore
        empty = torch.empty(0, 0)
        stored = (in_checkpoint(self.base, {names[id(module)]: empty}) for module in both)
        embeddings, head = (next(iter(found)) for found in stored)
        return {embeddings: head}

    def _header(self, name: str) -> dict[str, tuple[str, list[int]]]:
        with safe_open(self.source / name, "pt") as file:
            found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            header = {k: (self._kept(s.get_dtype()), [*s.get_shape()]) for k, s in found.items()}
        return header | {new: header[old] for old, new in self._tied.items() if old in header}

    def _kept(self, dtype: str) -> str:
        return DTYPES.get(self.dtype or "", dtype) if dtype in TORCH else dtype

    def _tensors(self, name: str, header: Mapping[str, tuple[str, list[int]]]) -> Iterator[Tensor]:
        copies = {head: embeddings for embeddings, head in self._tied.items()}
        with safe_open(self.source / name, "pt") as file:
            stored = {*file.keys()}
            for key, (dtype, _) in header.items():
                key = key if key in stored else copies[key]
                yield self._merged(key, file.get_tensor(key)).to(TORCH.get(dtype))

    def _merged(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight of the checkpoint with its change, in float32, or as it is."""
        layer = self.layer_of.get(name, ...)
        if layer is ...:
            return weight
        change = self._layer(layer).get(name)  # pyright: ignore[reportArgumentType]
        exact = weight.float() if change is None else weight.float() + change
        return exact * self._scaled.get(name, 1.0)


def _write(
    path: Path, header: Mapping[str, tuple[str, list[int]]], tensors: Iterator[Tensor]
) -> dict[str, int]:
    """Write a safetensors file tensor by tensor, and return the bytes of each."""
    sizes, places, start = {}, {}, 0
    for name, (dtype, shape) in header.items():
        sizes[name] = math.prod(shape) * WIDTHS.get(dtype, 1)
        places[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [start, start + sizes[name]],
        }
        start += sizes[name]
    text = json.dumps({"__metadata__": {"format": "pt"}} | places).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sizes


def top_k_override(config: Mapping[str, Any], full_top_k: int, top_k: int) -> dict[str, Any]:
    """Return what to set in a model's config for a k.

    Raises:
        ModelError: the config has no name for k that is known here.

    Example:
        >>> top_k_override({"text_config": {"moe_topk": 2}}, 2, 1)
        {'text_config': {'moe_topk': 1}}
    """
    found: dict[str, Any] = {name: top_k for name in TOP_K if config.get(name) == full_top_k}
    for place, part in config.items():
        named = [n for n in TOP_K if isinstance(part, dict) and part.get(n) == full_top_k]
        found |= {place: dict.fromkeys(named, top_k)} if named else {}
    if not found:
        raise ModelError(f"the model's config has no setting of its {full_top_k} experts a token")
    return found


def merged_config(
    config: Mapping[str, Any], full_top_k: int, top_k: int, untied: bool
) -> dict[str, Any]:
    """Return a model's config with its output head written out, and with another k.

    Raises:
        ModelError: the config has no name for k that is known here.
    """
    changed = json.loads(json.dumps(config))
    parts = [changed, *(part for part in changed.values() if isinstance(part, dict))]
    for part in parts if untied else ():
        if part is changed or "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False
    other = top_k_override(config, full_top_k, top_k) if top_k != full_top_k else {}
    for name, value in other.items():
        changed[name] = changed[name] | value if isinstance(value, dict) else value
    return changed
