"""`fedmoe generate`: answers of a model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedmoe.cli import arguments


@click.command()
@click.argument("prompt", nargs=-1, help="The prompt; prompts are read line by line without one.")
@click.option("--run", type=arguments.FILE, help="A run's folder, for its model and adapter.")
@click.option("--model", default="mini", help="A base model: mini, a folder or a Hub id.")
@click.option("--tier", help="Answer like this budget tier of the run.")
@click.option("--top-k", type=int, help="Experts per token; the model's own number when omitted.")
@arguments.which
@click.option("--max-new-tokens", default=64, help="Length of the longest answer.")
def generate(
    prompt: tuple[str, ...],
    run: Path | None,
    model: str,
    tier: str | None,
    top_k: int | None,
    which: str,
    max_new_tokens: int,
) -> None:
    """Answer prompts with a base model or a run's adapter.

    \b
    Examples:
      fedmoe generate --run runs/quickstart 'turn on the kitchen lights'
      fedmoe generate --run runs/quickstart --tier lowest 'set a timer for 5 minutes'
      fedmoe generate --model mini --top-k 2 'what is a garden?'
    """
    from fedmoe.export.generate import Generator

    arguments.one_thread()
    generator = Generator.of(run, model, which, tier, top_k)
    for line in [" ".join(prompt)] if prompt else (line.removesuffix("\n") for line in sys.stdin):
        for text in generator.stream(line, max_new_tokens):
            print(text, end="", flush=True)
        print()
