"""The command line: `fedmoe run | check | compare | schema | pretrain | generate | ...`."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmoe.cli import models as listing
from fedmoe.deploy import command as deploying
from fedmoe.errors import FedMoEError
from fedmoe.watch import command as watching

DESCRIPTION = """\
Federated, budget-adaptive fine-tuning of sparse Mixture-of-Experts language models.

Clients activate as many experts per token as their budget allows; LoRA sits on every expert; the
server averages each expert by data size and by how often each client activated it."""

RAW = argparse.RawDescriptionHelpFormatter
RUN_EXAMPLES = """\
  fedmoe run configs/quickstart.yaml
  fedmoe run configs/quickstart.yaml aggregation.name=fedavg seed=1 --quiet"""
CHECK_EXAMPLES = """\
  fedmoe check configs/quickstart.yaml
  fedmoe check configs/quickstart.yaml budget.tiers.low.top_k=1"""
PLAN_EXAMPLES = """\
  fedmoe plan configs/quickstart.yaml             (this machine; a few real steps)
  fedmoe plan configs/quickstart.yaml --measure   (and how far predictions are off)
  fedmoe plan configs/olmoe_dolly.yaml --device configs/devices/l40s.yaml"""
COMPARE_EXAMPLES = """\
  fedmoe compare configs/compare_flame.yaml
  fedmoe compare configs/compare_flame.yaml seeds=[0]"""
SCHEMA_EXAMPLES = "  fedmoe schema > fedmoe.schema.json"
PRETRAIN_EXAMPLES = "  fedmoe pretrain configs/pretrain_mini.yaml"
UPCYCLE_EXAMPLES = """\
  fedmoe upcycle configs/upcycle_smollm2.yaml data.path=rows.jsonl
  fedmoe upcycle configs/upcycle_smollm2.yaml data.path=rows.jsonl 'method={name: copy}' out=c"""
GENERATE_EXAMPLES = """\
  fedmoe generate --run runs/quickstart 'turn on the kitchen lights'
  fedmoe generate --run runs/quickstart --tier lowest 'set a timer for 5 minutes'
  fedmoe generate --model mini --top-k 2 'what is a garden?'"""
EXPORT_EXAMPLES = "  fedmoe export runs/quickstart my-adapter"
TRACK_EXAMPLES = """\
  fedmoe track runs/quickstart
  fedmoe track runs/compare_flame/*-seed0 --to mlflow
  fedmoe track runs/quickstart --follow      (beside a run that is at work)"""
INTERRUPTED = "fedmoe: interrupted; what was finished is kept; a run goes on with --resume auto"
OVERRIDES = "settings in place of the file's, as dotted paths: rounds=5 training.learning_rate=1e-3"


FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""What a disk or a folder may say: the user's to mend, not a fault of the program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a user's mistake, 130 for Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    arguments = _parsed(argv)
    try:
        return arguments.command(arguments) or 0
    except FedMoEError as error:
        print(f"fedmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in FULL_OR_FORBIDDEN:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"fedmoe: error: {where}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; settings may also stand behind options, where argparse takes none."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    odd = [word for word in rest if "=" not in word or word[0] == "-"]
    if rest and (odd or "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(odd or rest)}")
    vars(arguments).get("overrides", []).extend(rest)
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fedmoe", description=DESCRIPTION, formatter_class=RAW)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command, name, summary, examples, arguments in (
        (_run, "run", "run an experiment and write its report", RUN_EXAMPLES, _run_arguments),
        (_check, "check", "validate a config and show its plan", CHECK_EXAMPLES, _with_config),
        (_plan, "plan", "how many experts a machine affords", PLAN_EXAMPLES, _plan_arguments),
        (_compare, "compare", "compare variants over seeds", COMPARE_EXAMPLES, _compare_arguments),
        (_schema, "schema", "print the JSON Schema of configs", SCHEMA_EXAMPLES, None),
        (_pretrain, "pretrain", "pretrain a small base model", PRETRAIN_EXAMPLES, _with_config),
        (_upcycle, "upcycle", "make a dense model sparse", UPCYCLE_EXAMPLES, _with_config),
        (_generate, "generate", "answer prompts", GENERATE_EXAMPLES, _generate_arguments),
        (_export, "export", "write an adapter for PEFT", EXPORT_EXAMPLES, _export_arguments),
        (
            watching.status,
            "status",
            "show what a run is at",
            watching.STATUS_EXAMPLES,
            watching.status_arguments,
        ),
        (
            watching.watch,
            "watch",
            "serve a live page of a run",
            watching.WATCH_EXAMPLES,
            watching.watch_arguments,
        ),
        (_track, "track", "tell a tracker what runs did", TRACK_EXAMPLES, _track_arguments),
        (
            deploying.deploy,
            "deploy",
            "make a server and its clients ready",
            deploying.EXAMPLES,
            deploying.arguments,
        ),
        (
            listing.models,
            "models",
            "list families and their sizes",
            listing.EXAMPLES,
            listing.arguments,
        ),
    ):
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{command.__doc__}",
            epilog=f"examples:\n{examples}",
            formatter_class=RAW,
        )
        sub.set_defaults(command=command)
        if arguments:
            arguments(sub)
    return parser


def _with_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help=OVERRIDES)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    _with_config(parser)
    parser.add_argument("--quiet", action="store_true", help="print only errors and the report")
    parser.add_argument("--json", action="store_true", help="print one JSON line per event")
    parser.add_argument(
        "--resume",
        choices=("no", "auto", "anyway"),
        default="no",
        help="auto: go on where a run of this name was interrupted, unless config, code, model or "
        "data have changed; anyway: even then (default: no, a new folder)",
    )
    parser.add_argument(
        "--faults",
        metavar="LIST",
        help="what goes wrong on purpose, as a rehearsal: "
        "drop=.1,slow=3x,corrupt=.01,nan=.02,kill-client=.05,kill-server@3 (the same as faults=... "
        "in the config)",
    )


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _with_config(parser)
    add = parser.add_argument
    add(
        "--device",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="plan for a profile instead, from the config alone; may be given again",
    )
    add("--measure", action="store_true", help="hold predictions against further real steps")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    _with_config(parser)
    parser.add_argument("--quiet", action="store_true", help="one line a run, then the table")


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", nargs="*", help="the prompt; without one, prompts are read line by line")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", type=Path, help="a run's folder: its model and adapter")
    source.add_argument("--model", default="mini", help="mini (default), a folder or a Hub id")
    add("--tier", help="answer as this budget tier of the run does")
    add("--top-k", type=int, help="experts per token (default: the model's)")
    _with_which(parser)
    add("--max-new-tokens", type=int, default=64, help="longest answer (default: 64)")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--without-rescaling", action="store_true", help="drop learned factors")
    _with_which(parser)


def _track_arguments(parser: argparse.ArgumentParser) -> None:
    names = ("tensorboard", "trackio", "mlflow", "wandb")
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="run", help="folders of runs")
    add("--to", choices=names, default=names[0], help="which tracker (default: tensorboard)")
    add("--follow", action="store_true", help="go on until the end of each run")


def _with_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--which", choices=("last", "best"), default="last", help="which adapter")


# Each command imports what it needs: `fedmoe --help` must not wait for torch.


def _run(arguments: argparse.Namespace) -> None:
    """Run a federated experiment; its folder gets ledger, adapters, scores and a report."""
    from fedmoe.config import load_experiment
    from fedmoe.progress.table import LiveTable
    from fedmoe.runs.session import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    faults = [] if arguments.faults is None else [f"faults={arguments.faults}"]
    experiment = load_experiment(arguments.config, [*arguments.overrides, *faults])
    folder = run(
        experiment,
        LiveTable(
            num_rounds=experiment.rounds,
            workers=experiment.simulation.workers,
            quiet=arguments.quiet,
            json=arguments.json,
        ),
        resume=arguments.resume,
    )
    if arguments.json:
        print(json.dumps({"kind": "folder", "folder": str(folder)}))
    else:
        print(f"{folder / 'report.html'}")


def _check(arguments: argparse.Namespace) -> None:
    """Validate a config and show the plan: tiers, clients, costs, who holds which data."""
    from rich.console import Console

    from fedmoe.cli.check_plan import show_plan
    from fedmoe.config import load_experiment
    from fedmoe.runs.prepare import prepare

    show_plan(prepare(load_experiment(arguments.config, arguments.overrides)), Console())


def _plan(arguments: argparse.Namespace) -> None:
    """Predict memory and seconds for every k, and choose the largest that fits; say why."""
    from rich.console import Console

    from fedmoe.cli.budget_plan import plan
    from fedmoe.config import load_experiment

    experiment = load_experiment(arguments.config, arguments.overrides)
    plan(experiment, arguments.device, arguments.measure, Console())


def _compare(arguments: argparse.Namespace) -> None:
    """Run every variant of an experiment over the same seeds and cases; write a report."""
    from rich.console import Console

    from fedmoe.comparison import compare

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = compare(arguments.config, arguments.overrides, arguments.quiet, Console())
    print(f"{folder / 'comparison.html'}")


def _schema(_: argparse.Namespace) -> None:
    """Print the JSON Schema of configs, with which editors complete and check them."""
    from fedmoe.config import Experiment
    from fedmoe.config.load import json_schema

    print(json.dumps(json_schema(Experiment), indent=2))


def _pretrain(arguments: argparse.Namespace) -> None:
    """Pretrain a small base model from scratch; started again, it goes on where it stopped."""
    from fedmoe.base_models.pretraining import recipe, train
    from fedmoe.config.load import load

    def show(row: dict[str, object]) -> None:
        numbers = {k: round(v, 4) for k, v in row.items() if isinstance(v, int | float)}
        print(numbers, flush=True)

    train.pretrain(load(recipe.Pretrain, arguments.config, arguments.overrides), show)


def _upcycle(arguments: argparse.Namespace) -> None:
    """Turn a dense, Llama-like model into a sparse MoE; a run names its folder in model.path."""
    from rich.console import Console

    from fedmoe.base_models.upcycling.recipe import Upcycle
    from fedmoe.cli.upcycle import upcycle
    from fedmoe.config.load import load

    upcycle(load(Upcycle, arguments.config, arguments.overrides), Console())


def _generate(arguments: argparse.Namespace) -> None:
    """Answer prompts with the base model, or with a run's adapter, at a chosen top_k."""
    from fedmoe.export.generate import Generator

    generator = Generator.of(
        arguments.run, arguments.model, arguments.which, arguments.tier, arguments.top_k
    )
    prompts = [" ".join(arguments.prompt)] if arguments.prompt else map(str.strip, sys.stdin)
    for prompt in prompts:
        for text in generator.stream(prompt, arguments.max_new_tokens):
            print(text, end="", flush=True)
        print()


def _export(arguments: argparse.Namespace) -> None:
    """Write a run's adapter as a PEFT folder, and refuse unless PEFT computes the same."""
    from fedmoe.export.saved import SavedRun

    saved = SavedRun.open(arguments.run, arguments.which)
    difference = saved.export(arguments.out, without_rescaling=arguments.without_rescaling)
    print(f"{arguments.out}: PEFT's logits agree within {difference:.1e}")


def _track(arguments: argparse.Namespace) -> None:
    """Tell TensorBoard, trackio, MLflow or W&B what is in runs' ledgers, offline by default."""
    from fedmoe.report.trackers import track

    for folder in arguments.runs:
        told = track(folder, arguments.to, follow=arguments.follow)
        print(f"{folder}: {arguments.to} was told {told} values")


if __name__ == "__main__":
    sys.exit(main())
