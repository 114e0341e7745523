"""The forms that an adapter is exported in, by the program that reads them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedmoe.errors import FedMoEError, ModelError
from fedmoe.models.folder import MINI

FUSED_IN_VLLM = ("gpt_oss", "qwen3_5_moe", "qwen3_5_moe_text", "nemotron_h")
"""Model types whose experts vLLM adapts in the fused form; for others it wants one per expert."""
WHOLE_LAYERS = (
    *("gpt_oss", "llama4_text", "granitemoe", "granitemoeshared", "granitemoehybrid"),
    *("granitemoe_swa", "hy_v4", "minimax_m3_vl_text", "aria_text", "inkling2_text"),
)
"""Model types whose checkpoints have all experts of a layer in one weight."""
NO_ADAPTER = ("dbrx", "nllb-moe")
"""Model types whose experts PEFT has no form for, or computes otherwise; see `no_peft`."""
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
    """The setting in the served model's config for this k; empty where its config has it."""
    architecture: str = ""
    """Its name in GGUF files."""
    folder: str = "MODEL"
    """The export's own, or a word that stands for it."""

    @property
    def place(self) -> str:
        """Return the export's folder as a shell reads it."""
        return shlex.quote(self.folder)

    @property
    def options(self) -> str:
        """Return the setting of k as further arguments of `from_pretrained`."""
        return "".join(f", {name}={value!r}" for name, value in self.override.items())

    @property
    def as_json(self) -> str:
        """Return the setting of k as one word of a shell; empty where the config has it."""
        return shlex.quote(json.dumps(self.override)) if self.override else ""


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
        return shlex.quote(base)
    found = f'from fedmoe.models.folder import model_folder as f; print(f("{MINI}"))'
    return f"\"$(python -c '{found}')\""


def _peft(served: Served) -> list[str]:
    mini, folder = served.base == MINI, json.dumps(served.folder)
    place = f'model_folder("{MINI}")' if mini else json.dumps(served.base)
    return [
        "from peft import PeftModel",
        f"from transformers import {served.auto}, AutoTokenizer",
        *(["from fedmoe.models.folder import model_folder"] if mini else []),
        f"base = {served.auto}.from_pretrained({place}{served.options})",
        f"model = PeftModel.from_pretrained(base, {folder})",
        *_answer(folder, served),
    ]


def _merged(served: Served) -> list[str]:
    folder = json.dumps(served.folder)
    engines = ["", "# or as a server:", f"# vllm serve {served.place}{_vllm_top_k(served)}"]
    engines += [f"# {_sglang_launch(served.place, served)}"]
    return [
        f"from transformers import {served.auto}, AutoTokenizer",
        f"model = {served.auto}.from_pretrained({folder}{served.options})",
        *_answer(folder, served),
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
        f"tokenizer = AutoTokenizer.from_pretrained({folder})",
        *asked,
        "answer = model.generate(**prompt, max_new_tokens=64, do_sample=False)",
        f"print(tokenizer.decode({new}, skip_special_tokens=True).strip())",
    ]


def _vllm(served: Served) -> list[str]:
    rank = f" --max-lora-rank {_vllm_rank(served.rank)}" if served.rank > VLLM_RANK else ""
    lora = f"--enable-lora --lora-modules adapter={served.place}"
    return [f"vllm serve {_in_shell(served.base)} {lora}{rank}{_vllm_top_k(served)}"]


def _vllm_top_k(served: Served) -> str:
    return f" --hf-overrides {served.as_json}" if served.override else ""


def _vllm_rank(rank: int) -> int:
    """Return the least rank that vLLM has a setting for."""
    return next((n for n in (16, 32, 64, 128, 256, 320, 512) if n >= rank), rank)


def _sglang(served: Served) -> list[str]:
    lora = f"--enable-lora --lora-paths adapter={served.place} --max-lora-rank {served.rank}"
    return [f"{_sglang_launch(_in_shell(served.base), served)} {lora}"]


def _sglang_launch(model: str, served: Served) -> str:
    top_k = f" --json-model-override-args {served.as_json}" if served.override else ""
    return f"python -m sglang.launch_server --model-path {model}{top_k}"


def _llama(served: Served) -> list[str]:
    return [f"llama-server -m {served.place}/model.gguf{_llama_top_k(served)} --jinja"]


def _llama_lora(served: Served) -> list[str]:
    adapter = f"--lora {served.place}/adapter.gguf{_llama_top_k(served)}"
    return [
        f"python llama.cpp/convert_hf_to_gguf.py {_in_shell(served.base)} --outfile base.gguf",
        f"llama-server -m base.gguf {adapter} --jinja",
    ]


def _llama_top_k(served: Served) -> str:
    if not served.override:
        return ""
    return f" --override-kv {served.architecture}.expert_used_count=int:{served.top_k}"


def _mlx(served: Served) -> list[str]:
    # It has no option for k, and reads the config.
    first = f"# first write {served.as_json} into {served.place}/config.json"
    return [
        *([first] if served.override else []),
        f"mlx_lm.convert --hf-path {served.place} --mlx-path mlx",
        "mlx_lm.server --model mlx",
    ]


FORMATS: dict[str, Format] = {
    "peft": Format("PEFT", "fused", _peft),
    "vllm": Format("vLLM", "experts", _vllm),
    "sglang": Format("SGLang", "experts", _sglang),
    "merged": Format("transformers, vLLM or SGLang", "merged", _merged),
    "llama.cpp": Format("llama.cpp", "gguf", _llama),
    "llama.cpp-lora": Format("llama.cpp", "gguf-lora", _llama_lora),
    "mlx": Format("MLX", "merged", _mlx),
}
"""By the name that `fedmoe export --for` takes."""


def writes_for(name: str, model_type: str) -> str:
    """Return the form that is written; vLLM takes some families' experts fused alone."""
    fused = name == "vllm" and model_type in FUSED_IN_VLLM
    return "fused" if fused else FORMATS[name].writes


def check_form(name: str, model_type: str) -> None:
    """Refuse an adapter of a family whose experts have no such form.

    Raises:
        ModelError: with what exports, if anything does.
    """
    if model_type in NO_ADAPTER and not FORMATS[name].whole:
        raise ModelError(
            f"--for {name}: no adapter of a {model_type} model can be exported, as PEFT does not "
            "compute its experts as they were trained"
        )
    if model_type in WHOLE_LAYERS and writes_for(name, model_type) == "experts":
        raise ModelError(
            f"--for {name} wants factors for each expert, and the checkpoint of a {model_type} "
            "model has all experts of a layer in one weight; use --for merged or --for peft"
        )


def check_dtype(name: str, dtype: str | None) -> None:
    """Refuse a type of weights that a format cannot have.

    Raises:
        FedMoEError: there is no such format, or it is an adapter, or another program's.
    """
    if name not in FORMATS:
        raise FedMoEError(f"--for {name!r} is not one of {', '.join(FORMATS)}")
    if dtype and not FORMATS[name].whole:
        raise FedMoEError("--dtype is for merged models; an adapter is written in float32")
    if dtype == "q8_0" and name != "llama.cpp":
        raise FedMoEError("--dtype q8_0 is a form of GGUF files: --for llama.cpp")
