"""What fewer experts cost a base model before any training: its loss per token at each k.

    python -m simulations.loss_by_k TEXT MODEL [MODEL ...]

TEXT is a file of plain text, of which the first tokens are scored in blocks; a MODEL is `mini`, a
folder or a Hub id, and NAME=MODEL gives it another name. It prints the table and draws the losses
over those at full k, for models of unlike tokenizers: a nat per token is not the same of each.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings, build_model
from fedmoe.models.rescaling import NoRescaling
from fedmoe.report import figures

Losses = dict[int, float]
"""Nats per token, by k."""


@torch.no_grad()
def losses(text: str, model: str, tokens: int, block: int = 256) -> Losses:
    """Return the loss per token at k = full, half of it, and so on down to 1."""
    adapted, tokenizer = build_model(ModelSettings(path=model), LoRA(rank=1), NoRescaling())
    ids = torch.tensor(tokenizer(text)["input_ids"][:tokens])
    rows = ids[: len(ids) // block * block].view(-1, block)
    found = Losses()
    k = adapted.full_top_k
    while k:
        adapted.set_budget(k)
        parts = [adapted.model(input_ids=some, labels=some).loss.item() for some in rows.split(1)]
        found[k], k = sum(parts) / len(parts), k // 2
    return found


def table(found: Mapping[str, Losses]) -> str:
    """Return one line a model: the loss at full k, and what each other k adds."""
    lines = ["| model | k: loss, and what a smaller k adds |", "|---|---|"]
    for name, by_k in found.items():
        full = max(by_k)
        rest = [f"{k}: +{loss - by_k[full]:.3f}" for k, loss in by_k.items() if k != full]
        lines.append(f"| {name} | {', '.join([f'{full}: {by_k[full]:.3f}', *rest])} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Losses], path: Path) -> None:
    """Draw what a smaller share of the model's k adds to its loss."""
    figure = figures.new_figure("Loss per token over that at full k")
    axes = figure.add_subplot()
    colours = figures.shades([*found])
    for i, (name, by_k) in enumerate(found.items()):
        full = max(by_k)
        x, y = [k / full for k in by_k], [loss - by_k[full] for loss in by_k.values()]
        look = figures.line_style(i, len(found))
        axes.plot(x, y, label=name, color=colours[name], clip_on=False, **look)
    axes.set_xscale("log", base=2)
    shares = [2.0**-i for i in range(5)]
    axes.set_xticks(shares, ["all", *(f"1/{2**i}" for i in range(1, 5))])
    axes.invert_xaxis()
    axes.set_xlabel("experts per token, as a share of the model's own k")
    axes.set_ylim(bottom=0)
    figures.dress(axes)
    figures.legend(figure, len(found))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Score the models, print the table, write the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=32768, help="of each tokenizer's own")
    parser.add_argument("--out", type=Path, default=Path("loss_by_k.png"))
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    named = dict((m.split("=", 1) if "=" in m else (m, m)) for m in options.models)
    found = {name: losses(text, model, options.tokens) for name, model in named.items()}
    print(table(found))
    draw(found, options.out)


if __name__ == "__main__":
    main()
