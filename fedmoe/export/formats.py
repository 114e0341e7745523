"""The forms that an adapter is exported in, by the program that reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmoe.models.folder import MINI

FUSED_IN_VLLM = ("gpt_oss", "qwen3_5_moe", "qwen3_5_moe_text", "nemotron_h")
"""Model types whose experts vLLM adapts in the fused form; for others it wants one per expert."""
VLLM_RANK = 16
"""The highest rank that vLLM takes without a flag."""

WHOLE = ("merged", "gguf")


@dataclass(frozen=True)
class Served:
    """An export that is served, by the numbers that its commands need."""

    base: str
    """The base model's name or Hub id."""
    rank: int
    full_top_k: int
    top_k: int
    """Experts that a token activates."""
    architecture: str = ""
    """Its name in GGUF files."""


@dataclass(frozen=True)
class Format:
    """One form of an export.

    Example:
        >>> FORMATS["merged"].writes
        'merged'
    """

    reader: str
    """The program that reads it."""
    writes: Literal["fused", "experts", "merged", "gguf", "gguf-lora"]
    """A PEFT adapter with a layer's experts in one tensor, one with a pair of factors per expert,
    a whole model, or either as one GGUF file."""
    commands: Callable[[Served], Sequence[str]]
    """The commands that serve it."""

    @property
    def whole(self) -> bool:
        """Return whether it is a whole model: with a k and factors of its own."""
        return self.writes in WHOLE


def _peft(served: Served) -> list[str]:
    top_k = f", num_experts_per_tok={served.top_k}" if served.top_k != served.full_top_k else ""
    place = f'model_folder("{MINI}")' if served.base == MINI else f'"{served.base}"'
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *(["from fedmoe.models.folder import model_folder"] if served.base == MINI else []),
        f"base = AutoModelForCausalLM.from_pretrained({place}{top_k})",
        'model = PeftModel.from_pretrained(base, "ADAPTER")',
        'tokenizer = AutoTokenizer.from_pretrained("ADAPTER")',
    ]


def _vllm(served: Served) -> list[str]:
    rank = f" --max-lora-rank {_vllm_rank(served.rank)}" if served.rank > VLLM_RANK else ""
    top_k = ""
    if served.top_k != served.full_top_k:
        top_k = f" --hf-overrides '{{\"num_experts_per_tok\": {served.top_k}}}'"
    lora = "--enable-lora --lora-modules adapter=ADAPTER"
    return [f"vllm serve {served.base} {lora}{rank}{top_k}"]


def _vllm_rank(rank: int) -> int:
    """Return the least rank that vLLM has a setting for."""
    return next((n for n in (16, 32, 64, 128, 256, 320, 512) if n >= rank), rank)


def _sglang(served: Served) -> list[str]:
    launch = f"python -m sglang.launch_server --model-path {served.base}"
    return [f"{launch} --enable-lora --lora-paths adapter=ADAPTER --max-lora-rank {served.rank}"]


def _llama_lora(served: Served) -> list[str]:
    top_k = ""
    if served.top_k != served.full_top_k:
        top_k = f" --override-kv {served.architecture}.expert_used_count=int:{served.top_k}"
    return [
        f"python llama.cpp/convert_hf_to_gguf.py {served.base} --outfile base.gguf",
        f"llama-server -m base.gguf --lora ADAPTER/adapter.gguf{top_k} --jinja",
    ]


FORMATS: dict[str, Format] = {
    "peft": Format("PEFT", "fused", _peft),
    "vllm": Format("vLLM", "experts", _vllm),
    "sglang": Format("SGLang", "experts", _sglang),
    "merged": Format("transformers, vLLM or SGLang", "merged", lambda _: ["vllm serve MODEL"]),
    "llama.cpp": Format(
        "llama.cpp", "gguf", lambda _: ["llama-server -m MODEL/model.gguf --jinja"]
    ),
    "llama.cpp-lora": Format("llama.cpp", "gguf-lora", _llama_lora),
    "mlx": Format(
        "MLX",
        "merged",
        lambda _: ["mlx_lm.convert --hf-path MODEL --mlx-path mlx", "mlx_lm.server --model mlx"],
    ),
}
"""By the name that `fedmoe export --for` takes."""
