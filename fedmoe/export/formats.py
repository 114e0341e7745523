"""The forms that an adapter is exported in, by the program that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedmoe.models.folder import MINI

FUSED_IN_VLLM = ("gpt_oss", "qwen3_5_moe", "qwen3_5_moe_text", "nemotron_h")
"""Model types whose experts vLLM adapts in the fused form; for others it wants one per expert."""
VLLM_RANK = 16
"""The highest rank that vLLM takes without a flag."""

WHOLE = ("merged", "gguf")
CAUSAL = "AutoModelForCausalLM"


@dataclass(frozen=True)
class Served:
    """An export that is served, by the numbers that its commands need."""

    base: str
    """The base model's name or Hub id."""
    auto: str
    """transformers' class that loads it."""
    rank: int
    top_k: int
    """Experts that a token activates."""
    override: Mapping[str, Any]
    """The setting in the base's config for this k; empty where the base has it."""
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


def _in_shell(base: str) -> str:
    """Return a base as other programs find it; the built-in one has no name that they know."""
    if base != MINI:
        return base
    found = f'from fedmoe.models.folder import model_folder as f; print(f("{MINI}"))'
    return f"\"$(python -c '{found}')\""


def _peft(served: Served) -> list[str]:
    mini = served.base == MINI
    place = f'model_folder("{MINI}")' if mini else f'"{served.base}"'
    top_k = "".join(f", {name}={value!r}" for name, value in served.override.items())
    return [
        "from peft import PeftModel",
        f"from transformers import {served.auto}, AutoTokenizer",
        *(["from fedmoe.models.folder import model_folder"] if mini else []),
        f"base = {served.auto}.from_pretrained({place}{top_k})",
        'model = PeftModel.from_pretrained(base, "ADAPTER")',
        *_answer("ADAPTER", served),
    ]


def _merged(served: Served) -> list[str]:
    engines = ["", "# or as a server:", "# vllm serve MODEL"]
    engines += ["# python -m sglang.launch_server --model-path MODEL"]
    return [
        f"from transformers import {served.auto}, AutoTokenizer",
        f'model = {served.auto}.from_pretrained("MODEL")',
        *_answer("MODEL", served),
        *(engines if served.auto == CAUSAL else []),
    ]


def _answer(folder: str, served: Served) -> list[str]:
    """Return the lines in which transformers answers a prompt."""
    asked = ['prompt = tokenizer("...", return_tensors="pt")']
    if served.auto == CAUSAL:
        asked = [
            'messages = [{"role": "user", "content": "..."}]',
            "prompt = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    new = 'answer[0, prompt["input_ids"].shape[1] :]' if served.auto == CAUSAL else "answer[0]"
    return [
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        *asked,
        "answer = model.generate(**prompt, max_new_tokens=64, do_sample=False)",
        f"print(tokenizer.decode({new}, skip_special_tokens=True))",
    ]


def _vllm(served: Served) -> list[str]:
    rank = f" --max-lora-rank {_vllm_rank(served.rank)}" if served.rank > VLLM_RANK else ""
    top_k = f" --hf-overrides '{json.dumps(served.override)}'" if served.override else ""
    lora = "--enable-lora --lora-modules adapter=ADAPTER"
    return [f"vllm serve {_in_shell(served.base)} {lora}{rank}{top_k}"]


def _vllm_rank(rank: int) -> int:
    """Return the least rank that vLLM has a setting for."""
    return next((n for n in (16, 32, 64, 128, 256, 320, 512) if n >= rank), rank)


def _sglang(served: Served) -> list[str]:
    launch = f"python -m sglang.launch_server --model-path {_in_shell(served.base)}"
    return [f"{launch} --enable-lora --lora-paths adapter=ADAPTER --max-lora-rank {served.rank}"]


def _llama_lora(served: Served) -> list[str]:
    top_k = ""
    if served.override:
        top_k = f" --override-kv {served.architecture}.expert_used_count=int:{served.top_k}"
    return [
        f"python llama.cpp/convert_hf_to_gguf.py {_in_shell(served.base)} --outfile base.gguf",
        f"llama-server -m base.gguf --lora ADAPTER/adapter.gguf{top_k} --jinja",
    ]


FORMATS: dict[str, Format] = {
    "peft": Format("PEFT", "fused", _peft),
    "vllm": Format("vLLM", "experts", _vllm),
    "sglang": Format("SGLang", "experts", _sglang),
    "merged": Format("transformers, vLLM or SGLang", "merged", _merged),
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
