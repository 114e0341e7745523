"""`fedmoe evaluate`: scores on any data."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmoe.cli import arguments, sources

if TYPE_CHECKING:
    from fedmoe.evaluation.evaluate import Evaluation
    from fedmoe.export.evaluated import Evaluated
    from fedmoe.export.harness import HarnessScore
    from fedmoe.report.text_table import TextTable


@click.command()
@click.argument("source", help="A run's folder, an exported adapter's, or a base model.")
@arguments.overrides
@click.option("--data", type=arguments.FILE, help="A file, or a folder with a file for each owner.")
@click.option(
    "--split",
    type=click.Choice(["all", "train", "validation", "test"]),
    help="The part to score: all, or test of a run's own data, when omitted.",
)
@click.option("--tier", "tiers", multiple=True, help="A tier of the run; all when omitted.")
@click.option("--metric", "metrics", multiple=True, help="A metric; the first is the score.")
@arguments.which
@click.option("--base", default="", help="The base model of an adapter, if it has moved.")
@click.option("--answers", type=arguments.FILE, help="A file to write every answer to.")
@click.option("--harness", "task", help="Score by a task of lm-evaluation-harness; see below.")
@click.option(
    "--harness-python", "python", type=arguments.FILE, help="The Python that has it, if not this."
)
@click.option("--harness-options", default="", help='Further options of its own: "--limit 20".')
@click.option(
    "--harness-folder", "place", type=arguments.FILE, help="Where the task `rows` is to stay."
)
@click.option("--json", is_flag=True, help="Print the scores as JSON.")
def evaluate(
    source: str,
    overrides: tuple[str, ...],
    data: Path | None,
    split: Any,
    tiers: tuple[str, ...],
    metrics: tuple[str, ...],
    which: Any,
    base: str,
    answers: Path | None,
    task: str | None,
    python: Path | None,
    harness_options: str,
    place: Path | None,
    json: bool,
) -> None:
    """Score an adapter or a base model on any data.

    An adapter is that of a run, at its tiers, or an exported one. `--harness` takes the name of a
    task of lm-evaluation-harness, or the YAML file of one; `--harness rows` makes one of the rows
    that are scored, and compares its exact match with ours, row by row.

    \b
    Examples:
      fedmoe evaluate runs/quickstart
      fedmoe evaluate runs/quickstart --data rows.jsonl --tier low --metric token_f1
      fedmoe evaluate my-adapter --data rows/ --answers answers.jsonl
      fedmoe evaluate mini --data rows.jsonl data.prompt=question
      fedmoe evaluate my-adapter --harness arc_easy --harness-options "--limit 100"
      fedmoe evaluate runs/quickstart --tier low --harness rows
    """
    if task is None and (python or harness_options or place):
        raise click.UsageError("--harness-python, -options and -folder need --harness")
    if task and (metrics or answers):
        raise click.UsageError("--metric and --answers are not for --harness")
    sources.check_files(data, answers, python)
    sources.check_source(source, which, tiers)
    from fedmoe.system.files import write_text
    from fedmoe.system.json_text import json_text

    arguments.one_thread()
    how: Any = {"split": split, "tiers": tiers, "which": which, "base": base}
    if task:
        from fedmoe.export.harness import Harness, in_harness

        harness = Harness(python or Path(sys.executable), harness_options)
        _print_harness(in_harness(source, task, harness, place, data, overrides, **how), json)
        return
    from fedmoe.export.evaluated import evaluate

    named = [f"evaluation.metric=[{','.join(metrics)}]"] if metrics else []
    asked = [*overrides, *named]
    found = evaluate(source, data, asked, answers=answers is not None, say=_say, **how)
    if answers:
        write_text(answers, "".join(f"{json_text(record)}\n" for record in found.answers))
    if json:
        print(json_text([each.as_json() for each in found.evaluations], indent=1))
    else:
        _print(found, answers)


def _say(line: str) -> None:
    print(f"fedmoe: {line}", file=sys.stderr, flush=True)


def _print(found: Evaluated, answers: Path | None) -> None:
    from fedmoe.cli.terminal import print_table, say, terminal
    from fedmoe.report.units import listed

    console = terminal()
    for name, counts in found.rows.items():
        lost = f", {counts.loss()}" if counts.dropped else ""
        say(console, f"{name}: {counts.test:,} rows{lost}")
    for note in found.notes:
        say(console, note)
    print_table(console, _table(found.evaluations))
    if answers:
        say(console, f"answers: {listed([str(answers)])}")


def _table(evaluations: tuple[Evaluation, ...]) -> TextTable:
    """Return a row per tier, and one below it for each owner of several."""
    from fedmoe.cli.terminal import table
    from fedmoe.report.units import count_text, number_text, percent_text

    first = evaluations[0]
    # By the loss alone there is no score, and the loss is a column in any case.
    named = [*([first.metric] if first.metric != "loss" else []), *first.metrics]
    rows = []
    for each in evaluations:
        for name, of in [("all", each), *((client.name, client) for client in each.clients)]:
            scores = [of.score if m == first.metric else of.metrics[m] for m in named]
            cells = [each.tier, name, str(each.top_k), count_text(of.examples)]
            rows.append([*cells, *map(percent_text, scores), number_text(of.loss)])
    columns = ["tier", "rows", "k", "examples", *named, "loss"]
    return table("scores", [name.replace("_", " ") for name in columns], rows, num_words=2)


def _print_harness(scores: list[HarnessScore], json: bool) -> None:
    """Print a row per model, task and metric."""
    from fedmoe.cli.terminal import print_table, table, terminal
    from fedmoe.system.json_text import json_text

    if json:
        print(json_text([asdict(score) for score in scores], indent=1))
        return
    rows = [
        [
            each.tier,
            each.form,
            each.task,
            name,
            f"{value:.4g}",
            *([] if each.ours is None else [f"{each.ours:.4g}", f"{each.equal} of {each.rows}"]),
        ]
        for each in scores
        for name, value in each.metrics.items()
    ]
    ours = ["ours", "rows alike"] if any(each.ours is not None for each in scores) else []
    columns = ["tier", "form", "task", "metric", "harness", *ours]
    print_table(terminal(), table("lm-evaluation-harness", columns, rows, num_words=4))
