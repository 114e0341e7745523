"""One client step of a sparse layer, ours against PEFT's and against no LoRA at all.

All variants run in turns on the same tokens and weights, on a processor in float32, on a GPU in
bfloat16, in which its grouped products are, and at the shape of OLMoE-1B-7B's layers. Every step is
also a multiple of the device's limit (`limits`); goals for those are for a GPU of the H100's class.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from simulations.benchmarks.limits import measured
from simulations.benchmarks.measure import Options, Row, at_least, at_most, named, ratio
from simulations.benchmarks.memory import tensor_bytes
from simulations.benchmarks.sparse_layer import (
    BARE,
    CAPTURED,
    EAGER,
    FUSED,
    GROUPED,
    NO_LORA,
    OURS,
    PRODUCTS,
    RECOMPUTE,
    SCATTERED,
    Layer,
    Size,
)


def rows(options: Options) -> Iterator[Row]:
    """Yield the layer's ratios, in time and in memory."""
    size = Size(64, 8, 32, 8) if options.quick else Size()
    if options.device != "cpu":
        wide = {} if options.quick else {"hidden": 2048, "width": 1024}
        size = replace(size, dtype=torch.bfloat16, **wide)
    few, many, most = (32, 64, 128) if options.quick else (512, 2048, 8192)
    layer = Layer(size, options.device)
    yield from against_limits(layer, options, many, most)
    yield from against_peft(layer, options, few, many)
    yield from against_products(layer, options, many)
    yield from by_budget(layer, options, many, most)
    yield from memory(layer, many)
    yield from in_bf16(layer, options, many)


def against_limits(layer: Layer, options: Options, many: int, most: int) -> Iterator[Row]:
    """Yield every variant's step as a multiple of the most of weight reads and products."""
    limits, goals = measured(options, layer.size.dtype), layer.device != "cpu"
    note = f"{limits.bytes_per_second / 1e9:.0f} GB/s, {limits.flops_per_second / 1e12:.2f} TFLOP/s"
    best = CAPTURED if CAPTURED in layer.variants else OURS
    peers = (BARE, GROUPED, NO_LORA, FUSED, CAPTURED, SCATTERED) if goals else (BARE,)
    names = [OURS, *(name for name in peers if name in layer.variants)]
    for tokens, bar in ((many, 2.0), (most, 1.6)):
        floors, medians = {}, {}
        for top_k in (1, 8):
            floors[top_k] = floor = limits.floor(layer.size, tokens, top_k)
            setting, what = f"{tokens} tokens, k = {top_k}", "layer step against the device's limit"
            seconds = options.turns(layer.steps(tokens, top_k, *names))
            medians[top_k] = statistics.median(seconds[best])
            for name in names:
                multiple = at_most(statistics.median(seconds[name]) / floor, bar)
                goal: dict[str, Any] = {"figure": multiple["figure"]}
                goal = multiple if goals and name == best else goal
                yield Row(f"{what}, {name}", setting, note=note, **goal)
            if tokens == most and goals:
                peer = {1: 2.5, 8: 1.8}[top_k]
                faster = at_least(ratio(seconds[GROUPED], seconds[best]), peer)
                yield Row(f"layer step, {GROUPED} against {best}", setting, **faster)
        share = medians[1] / medians[8] / (floors[1] / floors[8])
        fields: dict[str, Any] = {"figure": f"{share:.2f}x"}
        fields = at_most(share, 1.25) if goals else fields
        yield Row("k = 1 to k = 8 against the limit's", f"{tokens} tokens", **fields)
    for name, why in layer.missing.items() if goals else ():
        yield Row(f"layer step, {name}", "", "not measured", note=why)


def against_peft(layer: Layer, options: Options, few: int, many: int) -> Iterator[Row]:
    """Yield step times against PEFT's wrappers, and against the layer without LoRA."""
    sizes = ((few, 1), (few, 2), (few, 8), (many, 1), (many, 8), (2 * many, 8))
    for place, (tokens, top_k) in enumerate(sizes):
        peers = {EAGER: 20.0} if place == 0 else {}
        peers[GROUPED] = 4.0 if top_k <= 2 else 2.0
        seconds = options.turns(layer.steps(tokens, top_k, OURS, BARE, NO_LORA, *peers))
        setting, note = f"{tokens} tokens, k = {top_k}", named("peft")
        for peer, bar in peers.items():
            faster = at_least(ratio(seconds[peer], seconds[OURS]), bar)
            yield Row(f"layer step, {peer}", setting, note=note, **faster)
        for bare in (BARE, NO_LORA):
            slower = at_most(ratio(seconds[OURS], seconds[bare]), 1.15)
            yield Row(f"layer step against {bare}", setting, **slower)


def against_products(layer: Layer, options: Options, tokens: int) -> Iterator[Row]:
    """Yield our step against its matrix products alone, each on one large matrix."""
    for top_k, bar in ((1, 2.5), (8, 1.5)):
        steps = layer.steps(tokens, top_k, OURS) | {PRODUCTS: layer.products(tokens * top_k)}
        seconds = options.turns(steps)
        setting, slower = f"{tokens} tokens, k = {top_k}", ratio(seconds[OURS], seconds[PRODUCTS])
        yield Row(f"layer step against {PRODUCTS}", setting, **at_most(slower, bar))


def by_budget(layer: Layer, options: Options, many: int, most: int) -> Iterator[Row]:
    """Yield our step at k = 1 against k = 8."""
    for tokens, bar in ((many, 0.22), (most, 0.18)):
        steps = {f"{k}": layer.steps(tokens, k, OURS)[OURS] for k in (1, 8)}
        seconds = options.turns(steps)
        share = at_most(ratio(seconds["1"], seconds["8"]), bar)
        yield Row("layer step, k = 1 against k = 8", f"{tokens} tokens", **share)


def memory(layer: Layer, tokens: int) -> Iterator[Row]:
    """Yield the peak of live tensors above weights and input."""
    for top_k in (1, 8):
        steps = layer.steps(tokens, top_k, OURS, RECOMPUTE, NO_LORA, GROUPED)
        peaks = {name: tensor_bytes(step, layer.device) for name, step in steps.items()}
        setting = f"{tokens} tokens, k = {top_k}"
        for name in (OURS, RECOMPUTE):
            peft = 0.25 if layer.device == "cpu" else 0.6
            for peer, bar in ((GROUPED, peft), (NO_LORA, 0.5)):
                what = f"peak memory of a layer step, {name} against {peer}"
                note = f"{peaks[name] / 2**20:.0f} MiB"
                yield Row(what, setting, note=note, **at_most(peaks[name] / peaks[peer], bar))


def in_bf16(layer: Layer, options: Options, tokens: int) -> Iterator[Row]:
    """Yield bf16 against fp32, and against bf16 without LoRA."""
    size, device = layer.size, layer.device
    half, whole = (
        layer if size.dtype == dtype else Layer(replace(size, dtype=dtype), device)
        for dtype in (torch.bfloat16, torch.float32)
    )
    on_cpu = device == "cpu"
    amx = on_cpu and torch.cpu.get_capabilities().get("amx_bf16", False)
    note = "AMX" if amx else "this processor has no AMX" if on_cpu else ""
    for top_k in (1, 8):
        steps = half.steps(tokens, top_k, OURS, BARE)
        steps["fp32"] = whole.steps(tokens, top_k, OURS)[OURS]
        seconds, setting = options.turns(steps), f"{tokens} tokens, k = {top_k}"
        faster: dict[str, Any] = at_least(ratio(seconds["fp32"], seconds[OURS]), 1.8)
        if not amx:
            faster |= {"wanted": "at least 1.8x where there is AMX", "met": None}
        yield Row("layer step, fp32 against bf16", setting, note=note, **faster)
        slower = at_most(ratio(seconds[OURS], seconds[BARE]), 1.3)
        yield Row(f"layer step in bf16 against {BARE}", setting, **slower)
