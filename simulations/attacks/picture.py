"""The figure: what one lie leaves, without and with the default rule."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from fedmoe.report import figures
from simulations.attacks.cases import DEFAULT, Case, Line, found
from simulations.attacks.catalogue import ATTACKS


def picture(lines: Sequence[Line]) -> bytes:
    """Return the figure: the mean score that is left after each lie, without and with the rule."""
    known = {
        a: [found(lines, Case("flame", rule, a)) for rule in ("none", DEFAULT)] for a in ATTACKS
    }
    names = [a for a, (without, with_) in known.items() if without and with_]
    figure = figures.new_figure("What one lying client of eight leaves (FLAME)", 4.4)
    figure.set_figwidth(7.5)  # what a lie is takes half of it
    axes = figure.subplots()
    colours = figures.shades(["no rule", f"{DEFAULT} (default)"])
    for place, (label, colour) in enumerate(colours.items()):
        scores = [mean(known[a][place][0]["score"].values()) for a in names]
        axes.plot(scores, range(len(names)), figures.MARKERS[place], color=colour, label=label,
                  markersize=8 - 2 * place)  # fmt: skip
    axes.set_xlabel("mean score, percent")
    axes.set_xlim(left=0)
    figures.dress_rows(axes, [ATTACKS[a].says for a in names])
    figures.legend(figure, 2)
    return figures.png(figure)
