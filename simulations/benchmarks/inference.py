"""Answers with experts in full, in 8 or 4 bits, or on disk: tokens per second, and memory.

Each form has a process to itself, and all are measured in turns. The figure is the speed of
decoding against full experts in memory, in tokens by the time in which the process computes or
waits for the disk, and not for a processor. The note has the prompt's, both in tokens per second,
and the most memory beyond its libraries that the process had as it answered and as it loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OlmoeConfig

from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, build_model, model_folder
from fedmoe.models.memory.frozen import weights_of
from fedmoe.models.memory.offload import give_up
from fedmoe.models.rescaling import NoRescaling
from simulations.benchmarks.measure import Options, Row

LAYERS, PROMPT, NEW = 2, 32, 6
FORMS = ("full", "int8", "int4", "disk")
DISK = {
    "disk": {},
    "disk, as touched": {"paged": False},
    "disk, none cached": {"cold": True},
    "disk, none cached, as touched": {"cold": True, "paged": False},
}
"""How experts on disk are measured: from the system's cache of the file or without it, and read at
once or as they are touched, as in training."""
Sample = dict[str, float]


def rows(options: Options) -> Iterator[Row]:
    """Yield the speed and memory of each form at k = top, 2 and 1, on two models."""
    with TemporaryDirectory(prefix="fedmoe-") as place:
        mini = AutoModelForCausalLM.from_pretrained(model_folder("mini"), dtype=torch.float32)
        yield from _of(_saved(mini, Path(place) / "mini"), "built-in model", "float32", options)
        layers, experts = (1, 8) if options.quick else (LAYERS, 64)
        config = OlmoeConfig(
            num_hidden_layers=layers, num_experts=experts, vocab_size=4096, eos_token_id=1
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            large = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        folder = _saved(large, Path(place) / "olmoe")
        del mini, large
        yield from _of(folder, f"OLMoE's shape, {layers} layers", "bfloat16", options)


def _saved(model: Any, folder: Path) -> Path:
    """Save a model with its experts as one weight, and the built-in tokenizer."""
    model.save_pretrained(folder, save_original_format=False)
    for file in Path(model_folder("mini")).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _of(folder: Path, model: str, dtype: str, options: Options) -> Iterator[Row]:
    wanted: dict[str, tuple[str, Mapping[str, bool]]] = {f: (f, {}) for f in FORMS[:-1]}
    wanted |= {name: ("disk", how) for name, how in DISK.items()}
    samples: dict[tuple[int, str], list[Sample]] = {}
    with ExitStack() as ends:
        workers = {form: Worker(folder, dtype, form, options.threads) for form in FORMS}
        for worker in workers.values():
            ends.callback(worker.process.kill)
        full_k = int(workers["full"].loaded["top_k"])
        for _ in range(options.repeats + 1):
            for k in (full_k, 2, 1):
                for name, (form, how) in wanted.items():
                    samples.setdefault((k, name), []).append(workers[form].ask(k=k, **how))
        loading = {form: worker.loaded["peak"] for form, worker in workers.items()}
    for (k, name), found in samples.items():
        speed, prompt = (_ratio(found, samples[k, "full"], part) for part in ("decode", "prompt"))
        usual = {key: statistics.median(one[key] for one in found[1:]) for key in found[0]}
        sizes = f"{usual['peak'] / 1e6:,.0f} and {loading[wanted[name][0]] / 1e6:,.0f} MB"
        note = f"prompt {prompt:.2f}x; {NEW / usual['decode']:.1f}, {PROMPT / usual['prompt']:.1f} "
        note += f"tokens/s; {sizes}"
        yield Row(f"{model}, {name}", f"k = {k}", f"{speed:.2f}x", note=note)


def _ratio(of: list[Sample], to: list[Sample], key: str) -> float:
    """Return the median over turns of the speeds' ratio; the first turn is to warm up."""
    return statistics.median(b[key] / a[key] for a, b in zip(of[1:], to[1:], strict=True))


class Worker:
    """A process that answers with experts in one form."""

    def __init__(self, folder: Path, dtype: str, form: str, threads: int) -> None:
        command = [sys.executable, "-m", __name__, str(folder), dtype, form, str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.loaded = self._read()

    def ask(self, **how: Any) -> Sample:
        """Return the seconds and the bytes of one prompt and its answer."""
        print(json.dumps(how), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> Sample:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())


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
