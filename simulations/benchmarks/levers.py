"""Memory levers: bytes of a client's frozen experts against the score that a run reaches with them.

Each row is a short run like the quickstart's of each seed, all of whose clients hold their frozen
experts in one way: quantised, or a subset chosen by each client's own data, or both. Its last
adapter is scored on test examples in the form that it was trained in (of subsets the mean over the
first clients), and once more with all experts in full, as a large device would use it. An hour or
two on 2 CPU cores: every run is written to `runs/levers.jsonl` as it ends, and what stands there is
not run again. The table and the curve so far are in `runs/levers.md` and `runs/levers.png`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fedmoe.config import load_experiment
from fedmoe.config.schema import Experiment
from fedmoe.evaluation.evaluate import Evaluation, by_tier, evaluate
from fedmoe.messages.codec import Task
from fedmoe.report.figures import MARKERS, MUTED, dress, new_figure, png, shades
from fedmoe.rounds import ServerState
from fedmoe.runs.prepare import prepare
from fedmoe.runs.prepared import Prepared
from fedmoe.runs.recorder import tier_costs
from fedmoe.system.files import write_bytes, write_text
from simulations.benchmarks.book import (
    CONFIG,
    FOLDER,
    QUICK,
    SEEDS,
    Line,
    Variant,
    amount,
    by_variant,
    gained,
    line_of,
    markdown,
    points,
    read,
)
from simulations.benchmarks.measure import Options, Row, at_most
from simulations.benchmarks.routers import trained

FULL = "full"
BARS = {"int8": 0.26, "int4": 0.15}
"""The most that a form may take of the experts' bytes in float32."""
TICKS = (1.5, 2, 3, 5, 10, 20, 30)
"""Of the curve's axis, MB: the built-in model's experts take 25 in full."""


def lever(name: str, tier: str) -> Variant:
    """All clients in one tier; one more, without clients, has all experts in full to score with."""
    return Variant(
        name,
        (f"budget.tiers={{all: {{top_k: 4, share: 1.0{tier}}}, whole: {{top_k: 4, share: 0.0}}}}",),
    )


def subset(keep: int, left_out: str, form: str = "full") -> Variant:
    """A subset, and the form of its experts."""
    what = {"drop": "dropped", "merge": "merged"}[left_out]
    name = f"{keep} of 16, others {what}" + (f", in {form}" if form != "full" else "")
    return lever(name, f", frozen: {form}, subset: {{keep: {keep}, left_out: {left_out}}}")


VARIANTS = (
    lever(FULL, ""),
    lever("int8", ", frozen: int8"),
    lever("int4", ", frozen: int4"),
    subset(8, "merge"),
    subset(8, "drop"),
    subset(4, "merge"),
    subset(4, "drop"),
    subset(8, "merge", "int4"),
)


def rows(options: Options) -> Iterator[Row]:
    """One row per lever, over the seeds."""
    torch.set_num_threads(options.threads)
    stem = "levers-quick" if options.quick else "levers"
    book, seeds = FOLDER / f"{stem}.jsonl", SEEDS[:1] if options.quick else SEEDS
    for variant in VARIANTS:
        found = [line(variant, seed, options.quick, book) for seed in seeds]
        shown = by_variant(kept(book))
        write_text(FOLDER / f"{stem}.md", table(shown))
        write_bytes((options.plots or FOLDER) / f"{stem}.png", curve(shown))
        yield row(variant.name, found)
    yield Row("all offloaded", "any form", "0.00x", note="in a file: the same bits as without")


def row(name: str, found: Sequence[Line]) -> Row:
    """A lever's bytes against float32's, and its scores."""
    line, setting = found[0], f"{len(found)} seed(s)"
    share = line["bytes"] / line["full_bytes"]
    note = (
        f"{line['bytes'] / 1e6:.1f} MB; score {amount(found, 'score')}, with all experts in full "
        f"{amount(found, 'whole_score')}"
    )
    what = f"frozen experts: {name}"
    if name in BARS:
        return Row(what, setting, note=note, **at_most(share, BARS[name]))
    return Row(what, setting, f"{share:.2f}x", note=note)


def line(variant: Variant, seed: int, quick: bool, book: Path) -> Line:
    """The lever's line of that seed: as it stands in the book, else measured and added to it."""
    experiment = asked(variant, seed, quick)
    return line_of(book, variant, experiment, lambda: measured(experiment))


def asked(variant: Variant, seed: int, quick: bool) -> Experiment:
    """A lever's run."""
    extra = (*QUICK, "data.per_domain=40") if quick else ()
    changes = [*extra, f"seed={seed}", "evaluation.every=0", *variant.overrides]
    return load_experiment(CONFIG, changes)


def kept(book: Path) -> list[Line]:
    """The last line of each lever and seed, in the order of the levers."""
    names = {variant.name: i for i, variant in enumerate(VARIANTS)}
    latest = {(x["variant"], x["seed"]): x for x in read(book) if x["variant"] in names}
    return [latest[key] for key in sorted(latest, key=lambda key: (names[key[0]], key[1]))]


def measured(experiment: Experiment) -> Line:
    """Run an experiment in this process and score its last adapter, in both ways."""
    prepared = prepare(experiment)
    price = tier_costs(prepared)["all"]
    state, _ = trained(prepared, prepared.first_state())
    own, whole = (scored(prepared, state, tier) for tier in ("all", "whole"))
    return {
        "score": own.score,
        "loss": own.loss,
        "whole_score": whole.score,
        "whole_loss": whole.loss,
        "bytes": price.expert_bytes,
        "full_bytes": price.full_expert_bytes,
    }


def scored(prepared: Prepared, state: ServerState, tier: str) -> Evaluation:
    """The state on test examples, as this tier's clients would compute with it."""
    found, data = [], prepared.sets["test"]
    settings, sent = prepared.experiment.evaluation, prepared.send(state.adapter, tier)
    top_k, rescaler = prepared.tiers[tier], state.rescalers[tier]
    for client in prepared.scored(tier):
        task = Task(state.round + 1, client, tier, top_k, rescaler, sent)
        adapter = prepared.deployed_adapter(task)
        prepared.configure(task, adapter)
        budget = {tier: (top_k, rescaler)}
        model, tokenizer = prepared.model, prepared.tokenizer
        found += evaluate(model, tokenizer, data, adapter, budget, settings, state.round)
    return by_tier(found)[0]


def table(shown: dict[str, list[Line]]) -> str:
    """The levers that were measured, as Markdown."""
    head = [
        "frozen experts",
        "seeds",
        "MB",
        "saved",
        "score",
        "points against full [95 %]",
        "score with all in full",
        "loss",
    ]
    lines = []
    for name, group in shown.items():
        share = group[0]["bytes"] / group[0]["full_bytes"]
        against = gained(group, shown.get(FULL, []))
        lines.append(
            [
                name,
                str(len(group)),
                f"{group[0]['bytes'] / 1e6:.2f}",
                f"{1 - share:.0%}",
                amount(group, "score"),
                points(against) if name != FULL else "",
                amount(group, "whole_score"),
                amount(group, "loss"),
            ]
        )
    return markdown(head, lines) + (
        "\nBytes of the frozen experts on a client; mean and standard deviation over seeds. "
        "Against full: the mean of paired differences with its t-interval. All of a form that is "
        "offloaded: 0 MB, and the same bits.\n"
    )


def curve(shown: dict[str, list[Line]]) -> bytes:
    """Bytes of the frozen experts against points of score lost, as a PNG."""
    figure = new_figure("Memory levers: bytes of frozen experts against score", 4.4)
    axes, colours = figure.subplots(), shades([*shown])
    for (name, group), marker in zip(shown.items(), MARKERS, strict=False):
        if (against := gained(group, shown.get(FULL, []))) is None:
            continue
        x, y, reach = group[0]["bytes"] / 1e6, 100 * against.mean, None
        if name != FULL and against.high is not None:
            reach = [100 * against.high - y]
        axes.errorbar(
            [x], [y], reach, fmt=marker, color=colours[name], label=name, capsize=3, markersize=7
        )
    axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel("MB of frozen experts on a client")
    axes.set_ylabel("points of test score, against full")
    dress(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return png(figure)
