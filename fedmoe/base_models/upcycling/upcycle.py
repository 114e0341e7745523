"""`fedmoe upcycle` in order: load the dense model, convert it, write it, check and measure it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmoe.base_models.upcycling import observe
from fedmoe.base_models.upcycling.copies import Copy
from fedmoe.base_models.upcycling.dense import DenseFFN
from fedmoe.base_models.upcycling.observe import Tick
from fedmoe.base_models.upcycling.recipe import Upcycle
from fedmoe.base_models.upcycling.source import load_dense
from fedmoe.base_models.upcycling.split import Split
from fedmoe.data import load_splits
from fedmoe.data.held_out import check_held_out
from fedmoe.data.text import Tokens
from fedmoe.data.wording import tokenize
from fedmoe.errors import ModelError
from fedmoe.models.build import DTYPES, ModelSettings, load_base
from fedmoe.models.families import check_top_k, moe_layers, set_top_k
from fedmoe.seeds import numpy_rng
from fedmoe.system.files import expanded
from fedmoe.system.folders import whole_folder, writing

LARGEST_DIFFERENCE = 1e-2
"""Share of the dense logits beyond which something must have been lost."""

Progress = Callable[[str, int, int], None]
"""A function that receives the stage, the number of its steps done, and of how many."""


@dataclass(frozen=True)
class Measured:
    """The held-out loss of one model at one number of active experts."""

    model: str
    top_k: int | None
    """None for the dense model."""
    active_share: float
    """Feed-forward weights that a token meets, over the dense model's."""
    loss: float


@dataclass(frozen=True)
class Upcycled:
    """The result."""

    folder: str
    architecture: str
    num_parameters: int
    logits_difference: float
    """Difference from the dense logits with all experts active: see `observe.logits_differ`."""
    losses: tuple[Measured, ...]


def upcycle(recipe: Upcycle, progress: Progress = lambda *_: None) -> Upcycled:
    """Make a sparse model from a dense one and write it as a Hugging Face folder.

    The folder appears at the end, complete, or not at all. `upcycling.json` in it holds the recipe
    and the losses.

    Raises:
        ModelError: `out` exists; the source cannot be used (see `load_dense` and the method's
            `check`); the written model does not reproduce the dense one.
        FedMoEError: `out` cannot be made, or is being made by another process.
        DataError: the text cannot be read, or none of it is short enough.
    """
    with whole_folder(expanded(recipe.out), _check_new) as folder:
        return _make(recipe, folder, progress)


def _check_new(out: Path) -> None:
    if out.exists():
        raise ModelError(f"out {str(out)!r} exists already; name a new folder, or remove it")


def _make(recipe: Upcycle, folder: Path, progress: Progress) -> Upcycled:
    progress("loading the dense model", 0, 1)
    dense, tokenizer = load_dense(recipe.source, DTYPES[recipe.dtype])
    progress("loading the dense model", 1, 1)
    recipe.method.check(dense)
    fit, held_out = _text(recipe, tokenizer)
    inputs: list[Any] = [None] * dense.config.num_hidden_layers
    if recipe.method.reads_text:
        tick = partial(progress, "reading text")
        inputs = observe.layer_inputs(dense, fit, recipe.batch_size, _pad(tokenizer), tick)
    tick = partial(progress, "converting layers")
    sparse = convert(recipe.method, dense, inputs, recipe.seed, tick)
    with writing(recipe.out):
        sparse.to(DTYPES[recipe.dtype]).save_pretrained(folder)  # pyright: ignore
        tokenizer.save_pretrained(folder)
    del sparse, inputs
    result = _prove(recipe, dense, folder, held_out, _pad(tokenizer), progress)
    facts = {"recipe": asdict(recipe), **asdict(result)}
    with writing(recipe.out):
        (folder / "upcycling.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return result


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id)  # pyright: ignore


def _text(recipe: Upcycle, tokenizer: Any) -> tuple[list[Tokens], list[Tokens]]:
    """Return the rows to fit on and the rows to measure on, each in random order."""
    splits = load_splits(recipe.data, recipe.seed)
    check_held_out(recipe.data, splits, ("train", "validation"))
    rows = []
    for name, examples in (("train", splits.train), ("validation", splits.validation)):
        order = numpy_rng(recipe.seed, "upcycle", name).permutation(len(examples))
        text = recipe.data.wording(recipe.text)
        rows.append(tokenize([examples[i] for i in order], tokenizer, text)[1])
    return observe.enough(rows[0], recipe.fit_tokens), rows[1][: recipe.held_out_examples]


def _prove(
    recipe: Upcycle,
    dense: PreTrainedModel,
    folder: Path,
    held_out: Sequence[Tokens],
    pad: int,
    progress: Progress,
) -> Upcycled:
    """Load the written model as a run would, compare it with the dense one, and measure both."""
    settings = ModelSettings(path=str(folder), dtype="float32", device="cpu")
    sparse: Any = load_base(settings)[0].eval().requires_grad_(False)
    layers, method = moe_layers(sparse), recipe.method
    top_ks = halvings(method.full_top_k)
    check_top_k(layers, {method.num_experts, *top_ks})
    set_top_k(layers, method.num_experts)
    difference = max(observe.logits_differ(dense, sparse, row) for row in held_out[:4])
    if not difference <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"source {recipe.source!r}: with all experts active the sparse model's logits differ "
            f"from the dense ones' by {difference:.1%}; expected at most {LARGEST_DIFFERENCE:.0%}. "
            "Some part of this model is not carried over"
        )
    losses = []
    for step, top_k in enumerate([None, *top_ks]):
        progress("measuring losses", step, 1 + len(top_ks))
        if top_k:
            set_top_k(layers, top_k)
        model, name = (sparse, method.name) if top_k else (dense, "dense")
        found = observe.loss(model, held_out, recipe.batch_size, pad)
        share = method.active_share(top_k, dense.config.intermediate_size) if top_k else 1.0
        losses.append(Measured(name, top_k, share, found))
    progress("measuring losses", 1 + len(top_ks), 1 + len(top_ks))
    return Upcycled(
        folder=recipe.out,
        architecture=type(sparse).__name__,
        num_parameters=sum(p.numel() for p in sparse.parameters()),
        logits_difference=difference,
        losses=tuple(losses),
    )


def convert(
    method: Split | Copy, dense: PreTrainedModel, inputs: Sequence[Any], seed: int, tick: Tick
) -> PreTrainedModel:
    """Return the sparse model, in the dense one's dtype.

    `inputs` has the inputs (tokens, hidden) of each layer's feed-forward part, first to last, or
    None for a method that reads no text.
    """
    model = method.empty(dense)
    state = {name: w for name, w in dense.state_dict().items() if ".mlp." not in name}
    layers: Any = dense.get_submodule("model.layers")
    for i, layer in enumerate(layers):
        ffn = DenseFFN.of(layer, dense.config.hidden_act)
        rng = numpy_rng(seed, "upcycle", "layer", i)
        tensors = method.layer(ffn, inputs[i], rng)
        state |= {f"model.layers.{i}.mlp.{name}": w for name, w in tensors.items()}
        tick(i + 1, len(layers))
    model.load_state_dict(state)
    model.generation_config = dense.generation_config
    return model.eval().requires_grad_(False)


def halvings(top_k: int) -> list[int]:
    """Return `top_k`, its half, and so on down to 1: the tiers to expect."""
    return [top_k >> i for i in range(top_k.bit_length())]
