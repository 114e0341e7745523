"""Answers with experts in full, in 8 or 4 bits, or on disk: tokens per second, and memory.

Each form has a process to itself, and all are measured in turns. The figure is the speed of
decoding against full experts in memory, in tokens by the time in which the process computes or
waits for the disk, and not for a processor. The note has the prompt's, both in tokens per second,
and the most memory beyond its libraries that the process had as it answered and as it loaded.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OlmoeConfig

from fedmoe.models.build import model_folder
from simulations.benchmarks import answering
from simulations.benchmarks.answering import NEW, PROMPT, Sample
from simulations.benchmarks.measure import Options, Row

LAYERS = 2
FORMS = ("full", "int8", "int4", "disk")
DISK = {
    "disk": {},
    "disk, as touched": {"paged": False},
    "disk, none cached": {"cold": True},
    "disk, none cached, as touched": {"cold": True, "paged": False},
}
"""How experts on disk are measured: from the system's cache of the file or without it, and read at
once or as they are touched, as in training."""


def rows(options: Options) -> Iterator[Row]:
    """Yield the speed and memory of each form at k = top, 2 and 1, on two models."""
    with TemporaryDirectory(prefix="fedmoe-") as place:
        mini = AutoModelForCausalLM.from_pretrained(model_folder("mini"), dtype=torch.float32)
        yield from _of(_saved(mini, Path(place) / "mini"), "built-in model", "float32", options)
        layers, experts = (1, 8) if options.quick else (LAYERS, 64)
        config = OlmoeConfig(
            intermediate_size=1024,
            num_hidden_layers=layers,
            num_experts=experts,
            vocab_size=4096,
            eos_token_id=1,
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
        loading = {form: worker.loaded["peak"] for form, worker in workers.items()}
        full_k = int(workers["full"].loaded["top_k"])
        for _ in range(options.repeats + 1):
            for k in (full_k, 2, 1):
                for name, (form, how) in wanted.items():
                    samples.setdefault((k, name), []).append(workers[form].ask(k=k, **how))
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
        command = [sys.executable, "-m", answering.__name__, str(folder), dtype, form, str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    @cached_property
    def loaded(self) -> Sample:
        """The most bytes while it loaded, and the model's k."""
        return self._read()

    def ask(self, **how: Any) -> Sample:
        """Return the seconds and the bytes of one prompt and its answer."""
        print(json.dumps(how), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> Sample:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())
