"""`python -m simulations.bench`: one client step of a sparse layer, ours against PEFT's.

A step is forward and backward through one OLMoE block whose experts carry LoRA; base weights are
frozen. All variants run interleaved in this process on the same tokens and weights, so a busy
machine slows all alike: read the ratios. Memory is the peak of live tensors above the weights, from
torch's profiler.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from fedmoe.models import experts

OURS = "fedmoe"
LIBRARIES = ("torch", "transformers", "peft")
EXAMPLES = """examples:
  python -m simulations.bench 2>/dev/null      (without the profiler's own chatter)
  python -m simulations.bench --hidden 1024 --experts 64 --width 512 --tokens 2048 --top-k 1 8
  python -m simulations.bench --dtype bfloat16 --repeats 11 --threads 2
"""


@dataclass(frozen=True)
class Size:
    """The layer that is measured."""

    hidden: int
    experts: int
    width: int
    rank: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Figures:
    """One variant at one `top_k`."""

    seconds: float
    """Median of the repeats."""
    peak_bytes: int
    """Tensors alive at the worst moment of a step, beyond weights and input."""


def main() -> None:
    """Print the table that the arguments ask for."""
    arguments = parse(sys.argv[1:])
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    size = Size(arguments.hidden, arguments.experts, arguments.width, arguments.rank, dtype)
    console = Console()
    variants = make_variants(size)
    console.print(
        f"hidden {size.hidden}, {size.experts} experts of width {size.width}, rank {size.rank}, "
        f"{arguments.dtype}, {arguments.tokens} tokens, {torch.get_num_threads()} thread(s); "
        f"median of {arguments.repeats}; " + ", ".join(f"{n} {version(n)}" for n in LIBRARIES)
    )
    x = torch.randn(arguments.tokens, size.hidden, generator=torch.Generator().manual_seed(1))
    table = new_table(list(variants))
    for top_k in arguments.top_k:
        add_rows(table, top_k, measure(variants, x.to(dtype), top_k, arguments.repeats))
    console.print(table)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line, or an end with its faults."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.bench", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--hidden", type=int, default=512, help="width of the model (default: %(default)s)")
    add("--experts", type=int, default=32, help="experts in the layer (default: %(default)s)")
    add("--width", type=int, default=256, help="inner width of an expert (default: %(default)s)")
    add("--rank", type=int, default=16, help="LoRA rank (default: %(default)s)")
    add("--tokens", type=int, default=512, help="tokens in a step (default: %(default)s)")
    add("--top-k", type=int, nargs="+", default=[1, 4], help="budgets (default: 1 4)")
    add("--repeats", type=int, default=5, help="steps of each variant, at least 5 (default: 5)")
    add("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="type of the base")
    arguments = parser.parse_args(words)
    if arguments.repeats < 5:
        parser.error(f"--repeats is {arguments.repeats}; a median of fewer than 5 says little")
    if not all(1 <= k <= arguments.experts for k in arguments.top_k):
        parser.error(f"--top-k is {arguments.top_k}; expected 1 to {arguments.experts} experts")
    return arguments


def make_variants(size: Size) -> dict[str, OlmoeSparseMoeBlock]:
    """The same layer with the same LoRA values, once for every way to compute it."""
    experts.register()
    config = OlmoeConfig(
        hidden_size=size.hidden, num_experts=size.experts, intermediate_size=size.width
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = OlmoeSparseMoeBlock(config).requires_grad_(False)
        for parameter in base.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        factors = [torch.randn(s) * 0.01 for s in factor_shapes(size)]
    base.to(size.dtype)
    return {
        OURS: ours(base, factors),
        "fedmoe, no LoRA": dispatched(base, experts.IMPLEMENTATION),
        "grouped_mm, no LoRA": dispatched(base, "grouped_mm"),
        "grouped_mm + PEFT": with_peft(dispatched(base, "grouped_mm"), factors),
        "eager + PEFT": with_peft(dispatched(base, "eager"), factors),
    }


def factor_shapes(size: Size) -> list[tuple[int, int, int]]:
    """Shapes of `A`, `B` of gate_up_proj and of `A`, `B` of down_proj."""
    e, r = size.experts, size.rank
    return [(e, r, size.hidden), (e, 2 * size.width, r), (e, r, size.width), (e, size.hidden, r)]


def dispatched(base: OlmoeSparseMoeBlock, implementation: str) -> OlmoeSparseMoeBlock:
    """`base` on one of transformers' experts implementations; the weights are shared."""
    block: Any = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    block.experts.config._experts_implementation = implementation
    return block


def ours(base: OlmoeSparseMoeBlock, factors: list[Tensor]) -> OlmoeSparseMoeBlock:
    """The fast path with LoRA."""
    block = dispatched(base, experts.IMPLEMENTATION)
    lora = experts.ExpertLoRA(*(nn.Parameter(f.clone()) for f in factors), 1.0)  # pyright: ignore
    for name, factor in zip(lora._fields, lora[:4], strict=False):
        block.register_parameter(name, factor)  # pyright: ignore[reportArgumentType]
    setattr(block.experts, experts.STATE, experts.ExpertState(lora=lora))
    return block


def with_peft(block: OlmoeSparseMoeBlock, factors: list[Tensor]) -> OlmoeSparseMoeBlock:
    """`block` with PEFT's own wrappers around both expert parameters."""
    rank = factors[0].shape[1]
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )  # fmt: skip
    inject_adapter_in_model(config, block)
    values = {"gate_up_proj": factors[:2], "down_proj": factors[2:]}
    for module in block.modules():
        if (parameter := getattr(module, "parameter_name", None)) is not None:
            a, b = values.pop(parameter)
            layer: Any = module
            layer.lora_A["default"].weight.data.copy_(a.flatten(0, 1))
            # PEFT 0.21: A (experts * rank, in) is expert-major, B (out, rank * experts) is not.
            layer.lora_B["default"].weight.data.copy_(b.permute(1, 2, 0).flatten(1))
    assert not values, values
    return block


def measure(
    variants: dict[str, OlmoeSparseMoeBlock], x: Tensor, top_k: int, repeats: int
) -> dict[str, Figures]:
    """Times and memory of every variant, in turns; their outputs must agree first."""
    check_same(variants, x, top_k)
    steps = {name: step_of(block, x) for name, block in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peaks = {name: peak_bytes(step) for name, step in steps.items()}  # and a warm-up
    for _ in range(repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {n: Figures(statistics.median(seconds[n]), peaks[n]) for n in variants}


def step_of(block: OlmoeSparseMoeBlock, x: Tensor) -> Callable[[], None]:
    """One training step's work in the layer, which leaves nothing behind."""

    def step() -> None:
        leaf = x.unsqueeze(0).requires_grad_()
        block(leaf).backward(x.unsqueeze(0))
        leaf.grad = None
        block.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def check_same(variants: dict[str, OlmoeSparseMoeBlock], x: Tensor, top_k: int) -> None:
    """Set the budget, and refuse to compare layers that do not compute the same."""
    for block in variants.values():
        block.gate.top_k = top_k
    tolerance = 1e-4 if x.dtype == torch.float32 else 5e-2
    wanted = variants[OURS](x.unsqueeze(0)).float()
    for name, block in variants.items():
        error = (block(x.unsqueeze(0)).float() - wanted).norm() / wanted.norm()
        assert "no LoRA" in name or error < tolerance, (name, error)


def peak_bytes(step: Callable[[], None]) -> int:
    """The most bytes that tensors made in `step` hold at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        alive += change
        peak = max(peak, alive)
    return peak


def new_table(names: list[str]) -> Table:
    """An empty table: a row for each `top_k` and figure, a column for each variant."""
    table = Table(title=f"a step, as a multiple of {OURS}'s", title_justify="left")
    for name in ("top_k", "", *names):
        table.add_column(name.replace(", ", ",\n").replace(" + ", "\n+ "), justify="right")
    return table


def add_rows(table: Table, top_k: int, figures: dict[str, Figures]) -> None:
    """Times and peaks: ours as they are, the others as multiples of ours."""
    base = figures[OURS]
    times = [f"{f.seconds / base.seconds:.2f}x" for f in figures.values()]
    peaks = [f"{f.peak_bytes / base.peak_bytes:.2f}x" for f in figures.values()]
    times[0], peaks[0] = f"{base.seconds * 1e3:.0f} ms", f"{base.peak_bytes / 2**20:.1f} MiB"
    table.add_row(str(top_k), "time", *times)
    table.add_row("", "peak", *peaks, end_section=True)


if __name__ == "__main__":
    main()
