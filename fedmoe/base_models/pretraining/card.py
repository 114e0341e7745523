"""The model card of a pretrained base: its data, how it learned, and what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedmoe.base_models.pretraining.corpus import PACKAGE
from fedmoe.system.package_data import package_text, package_yaml
from fedmoe.training.router_losses import RouterLosses


def write_card(out: Path, facts: dict[str, Any], log: Sequence[dict[str, Any]]) -> None:
    """Write `README.md`, `loss.png` and `pretraining.json` beside the weights in `out`."""
    plot_loss(out / "loss.png", log)
    (out / "README.md").write_text(card(facts, log), encoding="utf-8")
    (out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")


def card(facts: dict[str, Any], log: Sequence[dict[str, Any]]) -> str:
    """Return the card's text: `card.txt` with the facts put in."""
    licences = package_yaml(PACKAGE, "licences.yaml")
    tokens = facts["tokens_seen"] / 1e6
    points = [row for row in log if "validation_loss" in row]
    shown = points[:: max(1, len(points) // 10)]
    text = facts["sources"].values()
    told = sum(x["conversation_tokens"] for x in text) / sum(x["tokens"] for x in text)
    losses = [(f"{row['tokens'] / 1e6:.1f}", f"{row['validation_loss']:.3f}") for row in shown]
    fair = 1 / len(facts["expert_load"][0])
    return package_text(PACKAGE, "card.txt").format(
        parameters=facts["parameters"] / 1e6,
        shape=facts["recipe"]["model"],
        tokens=tokens,
        hours=facts["recipe"]["workers"] * facts["seconds"] / 3600,
        routing=_routing(facts["recipe"]),
        sources=_rows(
            (*licences[name], f"{x['documents']:,}", f"{x['bytes'] / 1e6:.1f}", f"{x['tokens']:,}")
            for name, x in facts["sources"].items()
        ),
        conversations=100 * told,
        top_k_loss=_rows(
            (k, f"{loss:.3f}", f"{loss - facts['validation_loss']:+.3f}")
            for k, loss in facts["loss_by_top_k"].items()
        ),
        losses=_rows([*losses, (f"{tokens:.1f} (end)", f"{facts['validation_loss']:.3f}")]),
        loads=_rows(
            (i, f"{min(load) / fair:.2f}", f"{max(load) / fair:.2f}")
            for i, load in enumerate(facts["expert_load"])
        ),
    )


def _rows(cells: Iterable[Sequence[object]]) -> str:
    """Return the lines of a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells)


def _routing(recipe: dict[str, Any]) -> str:
    """Return gating and losses, as a run names them."""
    losses = [f"{name} {w:g}" for name, w in RouterLosses(**recipe["losses"]).requested.items()]
    said = f" with losses on routing ({', '.join(losses)})" if losses else ""
    gating = recipe["gating"]["name"]
    if gating == "top_k":
        return said
    return f"{said}, under the gating `{gating}`: to choose so, a run names it (`gating.name`)"


def plot_loss(path: Path, log: Sequence[dict[str, Any]]) -> None:
    """Draw training loss, and validation loss at every k, against tokens."""
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
    for shade, top_k in enumerate(held_out[-1]["loss_by_top_k"] if held_out else ()):
        axes.plot(
            [r["tokens"] / 1e6 for r in held_out],
            [r["loss_by_top_k"][top_k] for r in held_out],
            color="#0b6e99",
            alpha=1 / (1 + shade),
            lw=2,
            label=f"validation, k = {top_k}",
        )
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
