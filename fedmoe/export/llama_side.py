"""llama.cpp's side of a check: greedy token ids of a GGUF file, in an environment that has it.

`python llama_side.py REQUEST ANSWER` reads and writes JSON, and imports nothing of fedmoe.
"""

import importlib
import json
import sys
import urllib.request


def answers(request: dict) -> list[list[int]]:
    """Return the ids that llama.cpp generates after each prompt.

    Prompts that are texts are split into tokens by llama.cpp itself.
    """
    llama = importlib.import_module("xllamacpp")  # llama.cpp's server as a library
    params = llama.CommonParams()
    params.model.path = request["model"]
    params.n_ctx = request["length"]
    params.cpuparams.n_threads = 1
    params.warmup = False
    # By default it rounds attention to half precision, which turns near ties.
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if request["adapter"]:
        params.lora_adapters = [llama.CommonAdapterLoraInfo(request["adapter"], 1.0)]
    server, found = llama.Server(params), []
    for prompt in request["prompts"]:
        asked = {"n_predict": request["max_new_tokens"], "temperature": 0, "return_tokens": True}
        asked |= {"prompt": prompt, "cache_prompt": False}
        sent = json.dumps(asked).encode()
        head = {"Content-Type": "application/json"}
        place = urllib.request.Request(f"{server.listening_address}/completion", sent, head)
        with urllib.request.urlopen(place) as reply:
            found.append(json.load(reply)["tokens"])
    return found


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    result = answers(request)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(result, file)
