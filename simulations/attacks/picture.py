"""The figure: what a lie costs under the default rule, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

from fedmoe.report import figures
from simulations.attacks.cases import CAREFUL, DEFAULT, Line, by_seed
from simulations.attacks.catalogue import ATTACKS


def picture(lines: Sequence[Line]) -> bytes:
    """Return the figure: points of score that each lie costs, a mark for each seed."""
    kinds = [(when, a) for (rule, when), attacks in CAREFUL.items() for a in attacks[1:]
             if rule == DEFAULT]  # fmt: skip
    figure = figures.new_figure("What one lying client of eight costs a default run", 4.4)
    figure.set_figwidth(7.5)  # what a lie is takes half of it
    axes = figure.subplots()
    colours = figures.shades(["in one round", "in all six"])
    for row, (when, attack) in enumerate(kinds):
        base, ours = (by_seed(lines, "careful", rule=DEFAULT, when=when, attack=a)
                      for a in ("honest", attack))  # fmt: skip
        lost = [ours[s]["score"]["high"] - base[s]["score"]["high"] for s in ours if s in base]
        place, label = when == "all", [*colours][when == "all"]
        axes.plot(lost, [row] * len(lost), figures.MARKERS[place], color=colours[label], alpha=0.7,
                  label=label if attack == "bound" else None)  # fmt: skip
    axes.set_xlabel("points at k = 8 against an honest client, by seed")
    figures.dress_rows(axes, [ATTACKS[attack].says for _, attack in kinds])
    figures.legend(figure, 2)
    return figures.png(figure)
