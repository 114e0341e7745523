"""The command line: `fedmoe run | check | schema | pretrain | generate | export`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmoe.errors import FedMoEError

DESCRIPTION = """\
Federated, budget-adaptive fine-tuning of sparse Mixture-of-Experts language models.

Clients activate as many experts per token as their budget allows; LoRA sits on every expert; the
server averages each expert by data size and by how often each client activated it."""

OVERRIDES = (
    "settings that replace the file's, as dotted paths: rounds=5 training.learning_rate=1e-3"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for a user's mistake, 130 for Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except FedMoEError as error:
        print(f"fedmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fedmoe: interrupted; what was finished is in the run's folder", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fedmoe", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = _add(commands, "run", _run, "run an experiment and write its report",
               "fedmoe run configs/quickstart.yaml",
               "fedmoe run configs/quickstart.yaml aggregation.name=fedavg seed=1 --quiet")  # fmt: skip
    _with_config(run)
    run.add_argument("--quiet", action="store_true", help="print only errors and the folder")
    run.add_argument("--json", action="store_true", help="print one JSON line per event")
    check = _add(commands, "check", _check, "validate a config and show the plan: tiers, clients, costs",
                 "fedmoe check configs/quickstart.yaml budget.tiers.low.top_k=2")  # fmt: skip
    _with_config(check)
    _add(commands, "schema", _schema, "print the JSON Schema of configs, for editors",
         "fedmoe schema > fedmoe.schema.json")  # fmt: skip
    pretrain = _add(commands, "pretrain", _pretrain, "pretrain a small base model; continues where it stopped",
                    "fedmoe pretrain configs/pretrain_mini.yaml")  # fmt: skip
    _with_config(pretrain)
    generate = _add(commands, "generate", _generate, "answer prompts with the base model or a run's adapter",
                    "fedmoe generate --run runs/quickstart 'turn on the kitchen lights'",
                    "fedmoe generate --run runs/quickstart --top-k 1 'set a timer for 5 minutes'",
                    "fedmoe generate --model mini 'what is a garden?'")  # fmt: skip
    generate.add_argument(
        "prompt", nargs="*", help="the prompt; without one, prompts are read line by line"
    )
    source = generate.add_mutually_exclusive_group()
    source.add_argument("--run", type=Path, help="a run's folder: its model and adapter")
    source.add_argument(
        "--model", default="mini", help="mini, a folder or a Hugging Face id (default: mini)"
    )
    generate.add_argument("--tier", help="answer as this budget tier of the run does")
    generate.add_argument("--top-k", type=int, help="experts per token (default: the model's)")
    generate.add_argument(
        "--which", choices=("last", "best"), default="last", help="which round's adapter"
    )
    generate.add_argument("--max-new-tokens", type=int, default=64)
    export = _add(commands, "export", _export, "write a run's adapter as a PEFT folder, and prove it equal",
                  "fedmoe export runs/quickstart my-adapter")  # fmt: skip
    export.add_argument("run", type=Path, help="a run's folder")
    export.add_argument("out", type=Path, help="the folder to make")
    export.add_argument(
        "--which", choices=("last", "best"), default="last", help="which round's adapter"
    )
    return parser


def _add(commands, name: str, command, help: str, *examples: str) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "\n".join(f"  {e}" for e in examples)
    parser = commands.add_parser(
        name, help=help, description=help.capitalize() + ".", epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(command=command)
    return parser


def _with_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help=OVERRIDES)


# Each command imports what it needs: `fedmoe --help` must not wait for torch.


def _run(arguments: argparse.Namespace) -> None:
    from fedmoe.config import load_experiment
    from simulations.live import LiveTable
    from simulations.run import run

    experiment = load_experiment(arguments.config, arguments.overrides)
    folder = run(
        experiment,
        LiveTable(num_rounds=experiment.rounds, quiet=arguments.quiet, json=arguments.json),
    )
    if arguments.json:
        print(json.dumps({"kind": "folder", "folder": str(folder)}))
    else:
        print(f"{folder / 'report.html'}")


def _check(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from fedmoe.config import load_experiment
    from fedmoe.prepare import prepare
    from simulations.plan import show_plan

    show_plan(prepare(load_experiment(arguments.config, arguments.overrides)), Console())


def _schema(_: argparse.Namespace) -> None:
    from fedmoe.config import Experiment
    from fedmoe.config.load import json_schema

    print(json.dumps(json_schema(Experiment), indent=2))


def _pretrain(arguments: argparse.Namespace) -> None:
    from fedmoe.config.load import load
    from fedmoe.pretraining.train import Pretrain, pretrain

    pretrain(load(Pretrain, arguments.config, arguments.overrides))


def _generate(arguments: argparse.Namespace) -> None:
    from simulations.generate import Generator

    generator = Generator.of(
        arguments.run, arguments.model, arguments.which, arguments.tier, arguments.top_k
    )
    prompts = [" ".join(arguments.prompt)] if arguments.prompt else map(str.strip, sys.stdin)
    for prompt in prompts:
        for text in generator.stream(prompt, arguments.max_new_tokens):
            print(text, end="", flush=True)
        print()


def _export(arguments: argparse.Namespace) -> None:
    from simulations.saved import SavedRun

    difference = SavedRun.open(arguments.run, arguments.which).export(arguments.out)
    print(f"{arguments.out}: PEFT's logits agree within {difference:.1e}")


if __name__ == "__main__":
    sys.exit(main())
