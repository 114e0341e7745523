"""One OLMoE block with LoRA on its experts, ours and PEFT's, with the same weights and values.

A step is forward and backward with frozen base weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import OlmoeConfig
from transformers.integrations.moe import ExpertsInterface
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from fedmoe.models import experts

OURS, RECOMPUTE, BARE = "fedmoe", "fedmoe, recompute", "fedmoe, no LoRA"
EAGER, GROUPED = "PEFT on eager experts", "PEFT on grouped_mm experts"
NO_LORA, PRODUCTS = "grouped_mm, no LoRA", "necessary products"
FUSED, SCATTERED = "fedmoe, Triton", "axolotl's ScatterMoE LoRA"
CAPTURED = "fedmoe, Triton, one graph"
Step = Callable[[], None]


@dataclass(frozen=True)
class Size:
    """The size of a layer."""

    hidden: int = 1024
    experts: int = 64
    width: int = 512
    rank: int = 16
    dtype: torch.dtype = torch.float32


class Layer:
    """One sparse layer, once for every way to compute it."""

    def __init__(self, size: Size, device: str = "cpu") -> None:
        experts.register()
        self.size, self.device = size, device
        e, r, d, w = size.experts, size.rank, size.hidden, size.width
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same weights in every type
            config = OlmoeConfig(hidden_size=d, num_experts=e, intermediate_size=w)
            base = OlmoeSparseMoeBlock(config).requires_grad_(False)
            for parameter in base.parameters():
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            shapes = (e, r, d), (e, 2 * w, r), (e, r, w), (e, d, r)  # A, B of each weight
            factors = [(torch.randn(shape) * 0.01).to(device) for shape in shapes]
        base.to(device, size.dtype)
        self.variants = {
            OURS: ours(base, factors),
            RECOMPUTE: ours(base, factors, recompute=True),
            BARE: dispatched(base, experts.IMPLEMENTATION),
            NO_LORA: dispatched(base, "grouped_mm"),
            GROUPED: with_peft(dispatched(base, "grouped_mm"), factors),
            EAGER: with_peft(dispatched(base, "eager"), factors),
        }
        self.missing: dict[str, str] = {}
        """Variants that this machine cannot compute, and why."""
        for name, make in {FUSED: fused, SCATTERED: scattered}.items() if device != "cpu" else ():
            try:
                self.variants[name] = make(base, factors)
            except ImportError as error:
                self.missing[name] = f"{error}"
        if FUSED in self.variants:
            self.variants[CAPTURED] = self.variants[FUSED]

    def steps(self, tokens: int, top_k: int, *names: str) -> dict[str, Step]:
        """Return a training step of every variant named; refuse if their outputs differ."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, tokens, self.size.hidden, generator=generator)
        x = x.to(self.device, self.size.dtype)
        tolerance, wanted = 1e-4 if x.dtype == torch.float32 else 5e-2, None
        for name in (OURS, *names):
            block = self.variants[name]
            block.gate.top_k = top_k
            with torch.no_grad():
                out = block(x).float()
            wanted = out if wanted is None else wanted
            error = (out - wanted).norm() / wanted.norm()
            assert "no LoRA" in name or error < tolerance, (name, error)
        steps: dict[str, Step] = {}
        for name in names:
            steps[name] = partial(train, self.variants[name], x, top_k)
            if name == CAPTURED:
                steps[name] = captured(steps[name])
        return steps

    def products(self, num_rows: int) -> Step:
        """Return the products of a step on one matrix: forward, and backward without dW."""
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


def train(block: OlmoeSparseMoeBlock, x: Tensor, top_k: int) -> None:
    """Do one training step's work in the layer, and leave nothing behind."""
    block.gate.top_k = top_k
    leaf = x.detach().requires_grad_()
    block(leaf).backward(x)
    block.zero_grad(set_to_none=True)


def captured(step: Step) -> Step:
    """Return a step whose kernels are started at once, by a CUDA graph."""
    for _ in range(3):
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def dispatched(base: OlmoeSparseMoeBlock, implementation: str) -> OlmoeSparseMoeBlock:
    """Return `base` on one of transformers' experts implementations; the weights are shared."""
    block: Any = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    block.experts.config._experts_implementation = implementation
    return block


def ours(
    base: OlmoeSparseMoeBlock, factors: list[Tensor], recompute: bool = False
) -> OlmoeSparseMoeBlock:
    """Return `base` on our path, with LoRA."""
    block = dispatched(base, experts.IMPLEMENTATION)
    lora = experts.ExpertLoRA(*(nn.Parameter(f.clone()) for f in factors), 1.0)  # pyright: ignore
    for name, factor in zip(lora._fields, lora[:4], strict=False):
        block.register_parameter(name, factor)  # pyright: ignore[reportArgumentType]
    setattr(block.experts, experts.STATE, experts.ExpertState(lora=lora, recompute=recompute))
    return block


def fused(base: OlmoeSparseMoeBlock, factors: list[Tensor]) -> OlmoeSparseMoeBlock:
    """Return `base` on Triton's kernels, with LoRA."""
    import_module("triton")

    block = ours(base, factors)
    getattr(block.experts, experts.STATE).fused = True
    return block


def scattered(base: OlmoeSparseMoeBlock, factors: list[Tensor]) -> OlmoeSparseMoeBlock:
    """Return `base` on axolotl's Triton kernels, which take LoRA as PEFT lays it out."""
    root = "axolotl.integrations.kernels.libs.scattermoe_lora"
    theirs, layers = (import_module(f"{root}.{name}") for name in ("experts", "layers"))
    ExpertsInterface.register("scattermoe", theirs.scattermoe_experts_forward)
    block: Any = dispatched(base, "scattermoe")
    (num_experts, rank, _), block.experts._scattermoe_lora = factors[0].shape, {}
    for name, (a, b) in {"gate_up_proj": factors[:2], "down_proj": factors[2:]}.items():
        peft = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        peft = (x.to(base.gate.weight.dtype) for x in peft)
        both = layers.peft_lora_to_scattermoe(*peft, num_experts, rank)
        leaves = [nn.Parameter(x.detach().clone()) for x in both]
        block.experts._scattermoe_lora[name] = *leaves, 1.0
        for side, leaf in zip("AB", leaves, strict=True):
            block.register_parameter(f"{name}_{side}", leaf)
    return block


def with_peft(block: OlmoeSparseMoeBlock, factors: list[Tensor]) -> OlmoeSparseMoeBlock:
    """Return `block` with PEFT's wrappers around both expert parameters."""
    rank, values = factors[0].shape[1], {"gate_up_proj": factors[:2], "down_proj": factors[2:]}
    targets = [f"experts.{name}" for name in values]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=[], target_parameters=targets)
    inject_adapter_in_model(config, block)
    for module in block.modules():
        if (parameter := getattr(module, "parameter_name", None)) is not None:
            a, b = values.pop(parameter)
            layer: Any = module.to(block.gate.weight.dtype)
            layer.lora_A["default"].weight.data.copy_(a.flatten(0, 1))
            # PEFT 0.21: A (experts * rank, in) is expert-major, B (out, rank * experts) is not.
            layer.lora_B["default"].weight.data.copy_(b.permute(1, 2, 0).flatten(1))
    assert not values, values
    return block
