"""A merged model, or an adapter, as one GGUF file for llama.cpp; and the file's weights again.

Names, shapes and types are those of llama.cpp's own `convert_hf_to_gguf.py` and
`convert_lora_to_gguf.py`. One tensor at a time is read, changed and written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmoe.adapter import Adapter
from fedmoe.errors import ModelError
from fedmoe.export.architectures import LAST, PLAIN, Architecture, architecture_of
from fedmoe.export.changes import changes_of, factors_in_checkpoint
from fedmoe.export.gguf_vocab import split_name, write_vocab
from fedmoe.export.merged import Merge

MODEL, LORA = "model.gguf", "adapter.gguf"
TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
"""Of matrices, by the names of `--dtype`; vectors and routers are in float32."""
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")


def gguf_package() -> Any:
    """Return the package gguf.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "GGUF files are written by the package gguf: pip install 'fedmoe[base-models]'"
        ) from error
    return gguf


@dataclass(frozen=True)
class Names:
    """The names of a model's weights in GGUF."""

    base: nn.Module
    """The model as transformers builds it; its weights are not read."""

    @cached_property
    def architecture(self) -> Architecture:
        """Return how llama.cpp computes it.

        Raises:
            ModelError: it does so otherwise than the model's config says, or is not known to.
        """
        config: Any = self.base.config
        found = architecture_of(config.model_type)
        for name, value in ({**PLAIN, **found.fixed}).items():
            if getattr(config, name, value) != value:
                raise ModelError(
                    f"llama.cpp computes {config.model_type} with {name} {value!r} alone, and the "
                    f"model has {getattr(config, name)!r}"
                )
        if found.name == "OLMOE" and config.num_key_value_heads != config.num_attention_heads:
            raise ModelError("llama.cpp computes olmoe with as many keys' heads as queries' alone")
        if (kind := config.rope_parameters["rope_type"]) != "default":
            raise ModelError(f"its positions are scaled ({kind}): {LAST}")
        return found

    @cached_property
    def _map(self) -> Any:
        gguf, config = gguf_package(), self.base.config
        arch = getattr(gguf.MODEL_ARCH, self.architecture.name)
        return gguf.get_tensor_name_map(arch, config.num_hidden_layers)  # pyright: ignore

    def of(self, weight: str) -> tuple[str, int | None]:
        """Return the name of a weight of the checkpoint, and its expert's number if it is of one.

        Raises:
            ModelError: it has none.
        """
        found = EXPERT.fullmatch(weight)
        path = f"{found[1]}.{found[3]}.weight" if found else weight
        if self.architecture.permuted:  # the converter's names of Mixtral's experts
            path = re.sub(r"model\.(.*)block_sparse_moe\.experts", r"\1feed_forward.experts", path)
        name = self._map.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"llama.cpp has no weight for {weight}: {LAST}")
        return name, int(found[2]) if found else None

    def order(self, name: str, rows: int) -> Tensor | None:
        """Return the rows of the checkpoint's weight in the order of GGUF's; None for the same."""
        if not (self.architecture.permuted and re.search(r"attn_[qk]\.", name)):
            return None
        config: Any = self.base.config
        heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
        return torch.arange(rows).view(heads, 2, -1).mT.reshape(-1)

    def grouped(self, weights: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the checkpoint's weights of each of GGUF's, experts in order."""
        found: dict[str, dict[int, str]] = {}
        for weight in weights:
            name, expert = self.of(weight)
            found.setdefault(name, {})[expert or 0] = weight
        return {name: [parts[e] for e in sorted(parts)] for name, parts in found.items()}


def write_gguf(
    merge: Merge,
    out: Path,
    *,
    kind: str,
    name: str,
    top_k: int,
    tokenizer: Any,
    template: str,
    texts: list[str],
) -> None:
    """Write a merged model as one file.

    Args:
        kind: type of matrices, of `TYPES`.
        texts: on which llama.cpp's way to split text must give the tokenizer's tokens.

    Raises:
        ModelError: llama.cpp computes such a model otherwise, or not at all; or no package gguf.
    """
    gguf, names = gguf_package(), Names(merge.base)
    config: Any = merge.base.config
    writer = gguf.GGUFWriter(
        out, gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, names.architecture.name)]
    )
    split = split_name(tokenizer, texts)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    _add_sizes(writer, config, top_k)
    write_vocab(writer, tokenizer, config.vocab_size, split, template)
    weights = merge.weights()
    writer.add_file_type(
        int(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"))
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    groups = names.grouped(weights)
    for tensor, parts in groups.items():
        shape = [*([len(parts)] if EXPERT.fullmatch(parts[0]) else []), *weights[parts[0]]]
        stored = _type(gguf, tensor, shape, kind)
        blocks, size = gguf.GGML_QUANT_SIZES[stored]
        number = int(np.prod(shape)) // blocks * size
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), number, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, parts in groups.items():
        found = [merge.weight(part).float() for part in parts]
        whole = torch.stack(found) if EXPERT.fullmatch(parts[0]) else found[0]
        if (order := names.order(tensor, whole.shape[0])) is not None:
            whole = whole[order]
        stored = _type(gguf, tensor, [*whole.shape], kind)
        writer.write_tensor_data(gguf.quants.quantize(whole.contiguous().numpy(), stored))
    writer.close()


def _type(gguf: Any, name: str, shape: list[int], kind: str) -> Any:
    """Return the type of a tensor: as llama.cpp's converter chooses it."""
    types = gguf.GGMLQuantizationType
    if len(shape) < 2 or name.endswith("_norm.weight") or "ffn_gate_inp" in name:
        return types.F32
    if kind == "Q8_0" and shape[-1] % 32:
        return types.F16
    return getattr(types, kind)


def _add_sizes(writer: Any, config: Any, top_k: int) -> None:
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    experts = getattr(config, "num_experts", None) or config.num_local_experts
    writer.add_expert_count(experts)
    writer.add_expert_used_count(top_k)
    if width := getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(width)
    if width := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(width)


def write_gguf_adapter(adapter: Adapter, base: nn.Module, out: Path, name: str) -> None:
    """Write an adapter as one file, with a layer's experts in one tensor.

    Raises:
        ModelError: llama.cpp has no form for it; or no package gguf.
    """
    gguf, names = gguf_package(), Names(base)
    writer = gguf.GGUFWriter(
        out, gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, names.architecture.name)]
    )
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter.layout.alpha))
    pairs = {w: (a, b) for w, a, b in factors_in_checkpoint(base, changes_of(adapter, base))}
    for tensor, parts in names.grouped(pairs).items():
        stacked = bool(EXPERT.fullmatch(parts[0]))
        for letter, at in (("a", 0), ("b", 1)):
            found = [pairs[part][at].float() for part in parts]
            whole = torch.stack(found) if stacked else found[0]
            if at and (order := names.order(tensor, whole.shape[0])) is not None:
                whole = whole[order]
            writer.add_tensor(f"{tensor}.lora_{letter}", whole.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(
    path: Path, base: nn.Module, weights: Mapping[str, Any]
) -> tuple[int, dict[str, Tensor]]:
    """Return a model's experts a token, and its weights by the checkpoint's names, in float32.

    Args:
        base: the model as transformers builds it.
        weights: the checkpoint's names.
    """
    gguf, names, found = gguf_package(), Names(base), dict[str, Tensor]()
    reader = gguf.GGUFReader(path)
    arch = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    top_k = reader.fields[gguf.Keys.LLM.EXPERT_USED_COUNT.format(arch=arch)].contents()
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, parts in names.grouped(weights).items():
        whole = _values(gguf, stored[name])
        if (order := names.order(name, whole.shape[0])) is not None:
            whole = whole[order.argsort()]
        found |= zip(parts, whole if EXPERT.fullmatch(parts[0]) else [whole], strict=True)
    return int(top_k), found


def _values(gguf: Any, tensor: Any) -> Tensor:
    """Return a tensor of a file in float32; numpy has its axes in torch's order."""
    data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(data)).view(*(int(n) for n in tensor.shape[::-1]))


def factors_of(
    path: Path, base: nn.Module, weights: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the changes `alpha / r * B A` of an adapter's file by the checkpoint's names."""
    gguf, names = gguf_package(), Names(base)
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, parts in names.grouped(weights).items():
        if f"{name}.lora_a" in stored:
            a, b = (_values(gguf, stored[f"{name}.lora_{letter}"]) for letter in "ab")
            whole = alpha / a.shape[-2] * (b @ a)
            if (order := names.order(name, whole.shape[0])) is not None:
                whole = whole[order.argsort()]
            yield from zip(parts, whole if whole.dim() == 3 else [whole], strict=True)
