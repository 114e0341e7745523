"""What a GPU alone can tell of a training step: waits, kernels started, milliseconds, bytes.

`python -m simulations.benchmarks gpu layer --device cuda --repeats 5` measures all of it in some
six minutes (estimated). On a processor `gpu --quick` runs the same lines on a tiny model, to see
that they work; its figures say nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from fedmoe.adapter import initial_adapter
from fedmoe.data.text import Tokens, collate
from fedmoe.models import experts
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.captured import Graphs
from fedmoe.models.rescaling import NoRescaling
from fedmoe.seeds import generator
from fedmoe.training import loss
from fedmoe.training.client import _accumulate
from fedmoe.training.learner import clip
from simulations.benchmarks.measure import Options, Row, at_most
from simulations.benchmarks.memory import tensor_bytes

OLMOE = {"hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64, "vocab_size": 50304}
TINY = {"hidden_size": 32, "intermediate_size": 16, "num_experts": 8, "vocab_size": 64}
WAYS = {"torch": (False, False), "Triton": (True, False), "Triton, one graph": (True, True)}
"""Kernels of Triton, and steps captured, by name."""


def rows(options: Options) -> Iterator[Row]:
    """Yield what is measured, or that nothing was."""
    on_gpu = options.device != "cpu"
    if not on_gpu and not options.quick:
        note = "needs --device cuda; `gpu --quick` tries the lines on a processor"
        yield Row("training step on a GPU", "", "not measured", note=note)
        return
    model: Any = resident(options)
    batch, length = (2, 16) if options.quick else (4, 512)
    vocabulary = model.form.head(model.model).weight.shape[0]
    texts = torch.randint(vocabulary, (batch, length + 1)).tolist()
    given = collate([Tokens(tuple(ids), length // 2) for ids in texts], 0)
    if on_gpu:
        yield waits(model, given)
    ways = {k: v for k, v in WAYS.items() if not v[0] or (on_gpu and find_spec("triton"))}
    medians = {}
    for top_k in (1, 8):
        model.set_budget(min(top_k, model.full_top_k))
        steps = {name: step_of(model, given, *way) for name, way in ways.items()}
        seconds = options.turns(steps)
        for name, step in steps.items():
            medians[name, top_k] = statistics.median(seconds[name])
            setting = f"{batch} x {length}, k = {top_k}, {name}"
            yield Row("training step", setting, f"{1000 * medians[name, top_k]:.1f} ms")
            yield Row("kernels started in a step", setting, f"{launches(step)}")
    for name in ways:
        share = medians[name, 1] / medians[name, 8]
        yield Row("training step, k = 1 against k = 8", name, f"{share:.2f}x")
    yield from of_logits(model, options)


def resident(options: Options) -> AdaptedModel:
    """Return a model of four of OLMoE-1B-7B's layers, of random weights."""
    experts.register()
    sizes = (TINY if options.quick else OLMOE) | {"num_hidden_layers": 4, "num_experts_per_tok": 8}
    config = AutoConfig.for_model("olmoe", num_attention_heads=16, num_key_value_heads=16, **sizes)
    with torch.device(options.device):
        base = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, experts_implementation=experts.IMPLEMENTATION
        )
    model = AdaptedModel(base, LoRA(rank=16), NoRescaling())
    model.load(initial_adapter(model.layout, generator(0, "gpu")))
    return model


def step_of(
    model: AdaptedModel, batch: object, triton: bool, captured: bool
) -> Callable[[], object]:
    """Return a whole step: forward, backward, clipping and AdamW, as a client makes it."""
    flat = torch.nn.Parameter(model.flat)
    flat.grad = model.grad
    optimizer = torch.optim.AdamW([flat], lr=1e-4, fused=True)
    graphs = Graphs(model) if captured else None
    shape = len(model.layers), model.layout.num_experts
    counts = torch.zeros(shape, dtype=torch.int64, device=model.device)
    routers = SimpleNamespace(terms=(), loss=lambda valid: None)

    def step() -> None:
        model.graphs = graphs
        for state, own in zip(model.states, counts, strict=True):
            state.fused, state.counts = triton, own
        _accumulate(model, [batch], routers, counts)  # pyright: ignore
        clip(model.grad, 1.0)
        optimizer.step()
        model.grad.zero_()

    step()  # the first of a shape is captured in the second
    return step


def waits(model: AdaptedModel, batch: object) -> Row:
    """Return whether the host waits for the GPU anywhere in a step."""
    step = step_of(model, batch, False, False)
    step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
        return Row("waits for the GPU in a step", "", "0", "at most 0", True)
    except RuntimeError as error:
        return Row("waits for the GPU in a step", "", "1", "at most 0", False, f"{error}"[:200])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launches(step: Callable[[], object]) -> int:
    """Return how often the host starts something on the GPU in a step: kernels, and graphs."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
    return sum(event.name.startswith(names) for event in recorded.events() or ())


def of_logits(model: Any, options: Options) -> Iterator[Row]:
    """Yield the memory of head and loss: all logits at once, and a part at a time."""
    rows, hidden = (32, 32) if options.quick else (2048, 2048)
    vocabulary, kind = model.form.head(model.model).weight.shape[0], torch.bfloat16
    states = torch.randn(rows, hidden, device=model.device).to(kind).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), device=model.device)

    def step(at_once: int) -> None:
        total: Any = loss.LossInParts.apply(states, targets, model.logits, at_once)
        torch.autograd.grad(total, states)

    sizes = rows, max(1, loss.LOGIT_VALUES // vocabulary)
    whole, parts = (tensor_bytes(partial(step, size), options.device) for size in sizes)
    note = f"{parts / 2**20:.0f} of {whole / 2**20:.0f} MiB"
    setting = f"{rows} targets, {vocabulary} tokens in the vocabulary"
    yield Row(
        "memory of the loss, in parts against whole",
        setting,
        note=note,
        **at_most(parts / whole, 1.0),
    )
