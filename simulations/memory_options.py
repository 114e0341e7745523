"""Memory options: bytes of a client's frozen experts against the score that a run reaches.

    python -m simulations.memory_options            (24 runs; about an hour on 2 CPU cores)
    python -m simulations.memory_options --quick    (tiny runs, two minutes: does it work?)

Each row is a run like the quickstart's with each of three seeds, all of whose clients activate 8 of
32 experts and store the frozen ones in one way: quantised, or a subset chosen by each client's own
data, or both. The last adapter is scored as it was trained (with subsets: the mean over the first
clients), and again on a device that has all experts in full. What came of it: `memory_options.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedmoe.report.figures import MARKERS, MUTED, dress, new_figure, png, shades
from fedmoe.report.run import read_run
from fedmoe.system.files import write_bytes
from simulations.study import Known, Line, Study, Variant, against, amount, gained, main, markdown

FULL = "full"
TICKS = (2, 3, 5, 10, 20, 40)
"""Limits of the curve's axis, in MB: the built-in model's experts take 38 in full."""


def option(name: str, tier: str = "") -> Variant:
    """Return a variant with all clients in one tier.

    A second tier, without clients, has all experts in full and is only scored.
    """
    tiers = f"{{all: {{top_k: 8, share: 1.0{tier}}}, whole: {{top_k: 8, share: 0.0}}}}"
    return Variant(name, (f"budget.tiers={tiers}",))


def subset(keep: int, left_out: str, form: str = "full") -> Variant:
    """Return a variant whose clients keep a subset of the experts, stored in some form."""
    what = {"drop": "dropped", "merge": "merged"}[left_out]
    name = f"{keep} of 32, others {what}" + (f", in {form}" if form != "full" else "")
    return option(name, f", frozen: {form}, subset: {{keep: {keep}, left_out: {left_out}}}")


VARIANTS = (
    option(FULL),
    option("int8", ", frozen: int8"),
    option("int4", ", frozen: int4"),
    subset(16, "merge"),
    subset(16, "drop"),
    subset(8, "merge"),
    subset(8, "drop"),
    subset(16, "merge", "int4"),
)
COLUMNS = ["frozen experts", "seeds", "MB", "saved", "score", "points against full [95 %]"]
COLUMNS += ["score with all in full", "loss"]
NOTE = (
    "Bytes of the frozen experts on a client; mean and standard deviation over seeds. Against "
    "full: the mean of paired differences with its t-interval. Offloaded, each form takes 0 MB "
    "and gives bitwise identical results."
)


def measure(variant: Variant, folder: Path) -> Line:
    """Return a run's test scores in both ways, and what its clients' experts take."""
    run = read_run(folder)
    own, whole = (run.curve("test", tier)[-1] for tier in ("all", "whole"))
    tier = next(tier for tier in run.tiers if tier.name == "all")
    scores = {"score": own["score"], "loss": own["loss"], "whole_score": whole["score"]}
    return scores | {"bytes": tier.expert_bytes, "full_bytes": tier.full_expert_bytes}


def show(known: Known, folder: Path) -> str:
    """Return the table as Markdown, and draw the curve into the folder."""
    write_bytes(folder / "memory_options.png", curve(known))
    rows = []
    for name, lines in known.items():
        size, points = lines[0]["bytes"], ""
        if name != FULL:
            points = against(lines, known[FULL], len(known) - 1)
        saved = f"{1 - size / lines[0]['full_bytes']:.0%}"
        scores = [amount(lines, "score"), points, amount(lines, "whole_score")]
        rows.append([name, str(len(lines)), f"{size / 1e6:.2f}", saved, *scores])
        rows[-1].append(amount(lines, "loss"))
    return markdown(COLUMNS, rows, NOTE)


def curve(known: Known) -> bytes:
    """Draw bytes of the frozen experts against points of score lost, as a PNG."""
    figure = new_figure("Memory options: bytes of frozen experts against score", 4.4)
    axes, colours = figure.subplots(), shades([*known])
    for (name, lines), marker in zip(known.items(), MARKERS, strict=False):
        if (found := gained(lines, known[FULL], max(1, len(known) - 1))) is None:
            continue
        x, y = lines[0]["bytes"] / 1e6, 100 * found.mean
        reach = None if name == FULL or found.high is None else [100 * found.high - y]
        look = {"color": colours[name], "capsize": 3, "markersize": 7}
        axes.errorbar([x], [y], reach, fmt=marker, label=name, **look)
    axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("MB of frozen experts on a client")
    axes.set_ylabel("points of test score, against full")
    dress(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return png(figure)


STUDY = Study("memory_options", VARIANTS, measure)

if __name__ == "__main__":
    sys.exit(main(STUDY, show, __doc__))
