"""One client step of a sparse layer, ours against PEFT's and against no LoRA at all.

A step is forward and backward through one OLMoE block whose experts carry LoRA; base weights are
frozen. All variants run in turns on the same tokens and weights, on a processor in float32, on a
GPU in bfloat16, in which its grouped products are. Memory is the peak of live tensors
above the weights: from torch's profiler on a processor, from its allocator on a GPU.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from fedmoe.models import experts
from simulations.benchmarks.measure import Options, Row, at_least, at_most, in_turns, named, ratio

OURS, BARE = "fedmoe", "fedmoe, no LoRA"
PEERS = {"eager": "PEFT on eager experts", "grouped_mm": "PEFT on grouped_mm experts"}
NO_LORA = "grouped_mm, no LoRA"
PRODUCTS = "necessary products"


@dataclass(frozen=True)
class Size:
    """The layer that is measured."""

    hidden: int = 1024
    experts: int = 64
    width: int = 512
    rank: int = 16
    dtype: torch.dtype = torch.float32


def rows(options: Options) -> Iterator[Row]:
    """The expert path's lines of the table."""
    size = Size(64, 8, 32, 8) if options.quick else Size()
    if options.device != "cpu":
        size = replace(size, dtype=torch.bfloat16)
    few, many, most = (32, 64, 128) if options.quick else (512, 2048, 8192)
    with torch.random.fork_rng():
        layer = Layer(size, options.device)
        yield from against_peft(layer, options, few, many)
        yield from against_products(layer, options, many)
        yield from by_budget(layer, options, many, most)
        yield from memory(layer, many)
        yield from in_bf16(layer, options, many)


def against_peft(layer: Layer, options: Options, few: int, many: int) -> Iterator[Row]:
    """Step times against PEFT's own wrapper, and against the layer without LoRA."""
    for tokens, top_k, peers in (
        (few, 1, ("eager", "grouped_mm")),
        (few, 2, ("grouped_mm",)),
        (few, 8, ("grouped_mm",)),
        (many, 1, ("grouped_mm",)),
        (many, 8, ("grouped_mm",)),
        (2 * many, 8, ("grouped_mm",)),
    ):
        steps = layer.steps(tokens, top_k, [OURS, BARE, NO_LORA, *(PEERS[p] for p in peers)])
        seconds = in_turns(steps, options.repeats, options.device, options.clock)
        setting = f"{tokens} tokens, k = {top_k}"
        for peer in peers:
            bar = 20.0 if peer == "eager" else 4.0 if top_k <= 2 else 2.0
            value = ratio(seconds[PEERS[peer]], seconds[OURS])
            yield Row(
                f"layer step, {PEERS[peer]}", setting, note=named("peft"), **at_least(value, bar)
            )
        for bare in (BARE, NO_LORA):
            value = ratio(seconds[OURS], seconds[bare])
            yield Row(f"layer step against {bare}", setting, **at_most(value, 1.15))


def against_products(layer: Layer, options: Options, tokens: int) -> Iterator[Row]:
    """Our step against its matrix products alone, each on one large matrix."""
    for top_k, bar in ((1, 2.5), (8, 1.5)):
        steps = layer.steps(tokens, top_k, [OURS])
        steps[PRODUCTS] = layer.products(tokens * top_k)
        seconds = in_turns(steps, options.repeats, options.device, options.clock)
        value = ratio(seconds[OURS], seconds[PRODUCTS])
        yield Row(
            f"layer step against {PRODUCTS}", f"{tokens} tokens, k = {top_k}", **at_most(value, bar)
        )


def by_budget(layer: Layer, options: Options, many: int, most: int) -> Iterator[Row]:
    """Our step at k = 1 against k = 8."""
    for tokens, bar in ((many, 0.22), (most, 0.18)):
        steps = {str(k): layer.steps(tokens, k, [OURS])[OURS] for k in (1, 8)}
        seconds = in_turns(steps, options.repeats, options.device, options.clock)
        yield Row(
            "layer step, k = 1 against k = 8",
            f"{tokens} tokens",
            **at_most(ratio(seconds["1"], seconds["8"]), bar),
        )


def memory(layer: Layer, tokens: int) -> Iterator[Row]:
    """Peak of live tensors above weights and input."""
    for top_k in (1, 8):
        names = [OURS, "fedmoe, recompute", NO_LORA, PEERS["grouped_mm"]]
        peaks = {
            n: peak_bytes(s, layer.device) for n, s in layer.steps(tokens, top_k, names).items()
        }
        for name in names[:2]:
            for peer, bar in ((names[3], 0.25), (NO_LORA, 0.5)):
                yield Row(
                    f"peak memory of a layer step, {name} against {peer}",
                    f"{tokens} tokens, k = {top_k}",
                    note=f"{peaks[name] / 2**20:.0f} MiB",
                    **at_most(peaks[name] / peaks[peer], bar),
                )


def in_bf16(layer: Layer, options: Options, tokens: int) -> Iterator[Row]:
    """bf16 against fp32, and against bf16 without LoRA."""
    size, device = layer.size, layer.device
    half, whole = (
        layer if size.dtype == dtype else Layer(replace(size, dtype=dtype), device)
        for dtype in (torch.bfloat16, torch.float32)
    )
    for top_k in (1, 8):
        steps = half.steps(tokens, top_k, [OURS, BARE])
        steps["fp32"] = whole.steps(tokens, top_k, [OURS])[OURS]
        seconds = in_turns(steps, options.repeats, options.device, options.clock)
        setting = f"{tokens} tokens, k = {top_k}"
        on_cpu = options.device == "cpu"
        amx = on_cpu and torch.cpu.get_capabilities().get("amx_bf16", False)
        value = ratio(seconds["fp32"], seconds[OURS])
        fields: dict[str, Any] = at_least(value, 1.8)
        if not amx:
            fields |= {"wanted": "at least 1.8x where there is AMX", "met": None}
        yield Row(
            "layer step, fp32 against bf16",
            setting,
            note="AMX" if amx else "this processor has none" if on_cpu else "",
            **fields,
        )
        value = ratio(seconds[OURS], seconds[BARE])
        yield Row(f"layer step in bf16 against {BARE}", setting, **at_most(value, 1.3))


class Layer:
    """One sparse layer with the same weights and LoRA values, once for every way to compute it."""

    def __init__(self, size: Size, device: str = "cpu") -> None:
        experts.register()
        torch.manual_seed(0)  # the same weights in every type; callers fork the generator
        self.size, self.device = size, device
        config = OlmoeConfig(
            hidden_size=size.hidden, num_experts=size.experts, intermediate_size=size.width
        )
        base = OlmoeSparseMoeBlock(config).requires_grad_(False)
        for parameter in base.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        base.to(device, size.dtype)
        factors = [(torch.randn(shape) * 0.01).to(device) for shape in factor_shapes(size)]
        self.variants = {
            OURS: ours(base, factors),
            "fedmoe, recompute": ours(base, factors, recompute=True),
            BARE: dispatched(base, experts.IMPLEMENTATION),
            NO_LORA: dispatched(base, "grouped_mm"),
            PEERS["grouped_mm"]: with_peft(dispatched(base, "grouped_mm"), factors),
            PEERS["eager"]: with_peft(dispatched(base, "eager"), factors),
        }

    def steps(self, tokens: int, top_k: int, names: list[str]) -> dict[str, Callable[[], None]]:
        """A training step of every variant named, once their outputs are known to agree."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(tokens, self.size.hidden, generator=generator)
        x = x.to(self.device, self.size.dtype)
        blocks = {name: self.variants[name] for name in names}
        check_same(blocks, x, top_k)
        return {name: step_of(block, x, top_k) for name, block in blocks.items()}

    def products(self, num_rows: int) -> Callable[[], None]:
        """The products of a step with all rows in one matrix: forward, and backward without dW."""
        size, make = self.size, partial(torch.randn, device=self.device, dtype=self.size.dtype)
        x, low = make(num_rows, size.hidden), make(num_rows, size.rank)
        h, gate_up = make(num_rows, size.width), make(num_rows, 2 * size.width)
        w1, w2 = make(2 * size.width, size.hidden), make(size.hidden, size.width)
        a1, b1 = make(size.rank, size.hidden), make(2 * size.width, size.rank)
        a2, b2 = make(size.rank, size.width), make(size.hidden, size.rank)

        def step() -> None:
            for inner, w, outer, a, b in ((x, w1, gate_up, a1, b1), (h, w2, x, a2, b2)):
                _ = inner @ w.T, inner @ a.T, low @ b.T
                _ = outer @ w, outer @ b, low @ a, low.T @ inner, outer.T @ low

        return step


def factor_shapes(size: Size) -> list[tuple[int, int, int]]:
    """Shapes of `A`, `B` of gate_up_proj and of `A`, `B` of down_proj."""
    e, r = size.experts, size.rank
    return [(e, r, size.hidden), (e, 2 * size.width, r), (e, r, size.width), (e, size.hidden, r)]


def dispatched(base: OlmoeSparseMoeBlock, implementation: str) -> OlmoeSparseMoeBlock:
    """`base` on one of transformers' experts implementations; the weights are shared."""
    block: Any = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    block.experts.config._experts_implementation = implementation
    return block


def ours(
    base: OlmoeSparseMoeBlock, factors: list[Tensor], recompute: bool = False
) -> OlmoeSparseMoeBlock:
    """The fast path with LoRA."""
    block = dispatched(base, experts.IMPLEMENTATION)
    lora = experts.ExpertLoRA(*(nn.Parameter(f.clone()) for f in factors), 1.0)  # pyright: ignore
    for name, factor in zip(lora._fields, lora[:4], strict=False):
        block.register_parameter(name, factor)  # pyright: ignore[reportArgumentType]
    setattr(block.experts, experts.STATE, experts.ExpertState(lora=lora, recompute=recompute))
    return block


def with_peft(block: OlmoeSparseMoeBlock, factors: list[Tensor]) -> OlmoeSparseMoeBlock:
    """`block` with PEFT's own wrappers around both expert parameters."""
    rank, dtype = factors[0].shape[1], block.gate.weight.dtype
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )
    inject_adapter_in_model(config, block)
    values = {"gate_up_proj": factors[:2], "down_proj": factors[2:]}
    for module in block.modules():
        if (parameter := getattr(module, "parameter_name", None)) is not None:
            a, b = values.pop(parameter)
            layer: Any = module.to(dtype)
            layer.lora_A["default"].weight.data.copy_(a.flatten(0, 1))
            # PEFT 0.21: A (experts * rank, in) is expert-major, B (out, rank * experts) is not.
            layer.lora_B["default"].weight.data.copy_(b.permute(1, 2, 0).flatten(1))
    assert not values, values
    return block


def step_of(block: OlmoeSparseMoeBlock, x: Tensor, top_k: int) -> Callable[[], None]:
    """One training step's work in the layer, which leaves nothing behind."""

    def step() -> None:
        block.gate.top_k = top_k
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


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """The most bytes that tensors made in `step` hold at one time."""
    if device != "cpu":
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
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
