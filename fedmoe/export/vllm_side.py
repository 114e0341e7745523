"""vLLM's side of a check: greedy token ids of a folder, in an environment that has vLLM.

`python vllm_side.py REQUEST ANSWER` reads and writes JSON, and imports nothing of fedmoe.
"""

import importlib
import json
import os
import sys


def answers(request: dict) -> list[list[int]]:
    """Return the ids that vLLM generates after each prompt."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # No dependency of fedmoe: it wants other versions of what fedmoe needs.
    vllm, lora = (importlib.import_module(name) for name in ("vllm", "vllm.lora.request"))
    options = {"enable_lora": True, "max_lora_rank": request["rank"]} if request["adapter"] else {}
    engine = vllm.LLM(
        request["model"],
        dtype="float32",
        max_model_len=request["length"],
        enforce_eager=True,
        **options,
    )
    sampling = vllm.SamplingParams(
        temperature=0.0, max_tokens=request["max_new_tokens"], stop_token_ids=request["ends"]
    )
    adapter = request["adapter"]
    asked = lora.LoRARequest("adapter", 1, adapter) if adapter else None
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    found = engine.generate(prompts, sampling, lora_request=asked)
    return [[*one.outputs[0].token_ids] for one in found]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    result = answers(request)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file)
