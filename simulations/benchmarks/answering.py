"""A process that answers with experts in one form, and says how long it took; see `inference`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, build_model
from fedmoe.models.memory.frozen import weights_of
from fedmoe.models.memory.offload import give_up
from fedmoe.models.rescaling import NoRescaling

PROMPT, NEW = 32, 6
Sample = dict[str, float]


def answer(model: AdaptedModel, file: int, k: int, cold: bool, paged: bool) -> Sample:
    """Process a prompt and decode greedily; without the system's cache of the file if `cold`."""
    model.set_budget(k)
    pages = model.frozen.pages if paged else {}
    for state, of_layer in zip(model.states, pages.get("full") or model.frozen.none, strict=True):
        state.pages = of_layer
    ids, cache, seconds = torch.arange(2, 2 + PROMPT).view(1, -1), None, list[float]()
    for _ in range(1 + NEW):
        if cold:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        started = own_time()
        with torch.no_grad():
            out = model.model(input_ids=ids, past_key_values=cache, use_cache=True)
        seconds.append(own_time() - started)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
    return {"prompt": seconds[0], "decode": sum(seconds[1:])}


def own_time() -> float:
    """Return the wall clock less what this thread has waited for a processor, in seconds."""
    waited = Path("/proc/thread-self/schedstat").read_text().split()[1]
    return time.perf_counter() - int(waited) / 1e9


def memory(name: str) -> int:
    """Return a size of this process's memory, by the system's name of it, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(folder: str, dtype: str, form: str, threads: str) -> None:
    """Load a model and answer what is asked on standard input."""
    torch.set_num_threads(int(threads))
    libraries, settings = memory("VmRSS"), ModelSettings(path=folder, dtype=dtype)  # pyright: ignore
    model, _ = build_model(settings, LoRA(rank=1), NoRescaling(), offload=form != "full")
    weights = [w for layer in model.layers for w in weights_of(layer)]
    model.frozen.hold({"full" if form == "disk" else form: form == "disk"}, paged=True)  # pyright: ignore
    for weight in weights if form == "full" else ():
        copy = weight.data.clone()  # as of a checkpoint that cannot be mapped
        give_up(weight)
        weight.data = copy
    file = os.open(Path(folder) / "model.safetensors", os.O_RDONLY)
    print(json.dumps({"peak": memory("VmHWM") - libraries, "top_k": model.full_top_k}), flush=True)
    for line in sys.stdin:
        for weight in weights if form == "disk" else ():
            give_up(weight)
        for pages in model.frozen.pages.get("full", ()):
            pages.used.clear()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        found = answer(model, file, **({"cold": False, "paged": True} | json.loads(line)))
        print(json.dumps(found | {"peak": memory("VmHWM") - libraries}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
