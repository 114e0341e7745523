"""`fedmoe generate`: answers of a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from fedmoe.cli import arguments, sources
from fedmoe.errors import FedMoEError


@click.command()
@click.argument("prompt", nargs=-1, help="The prompt; prompts are read line by line without one.")
@click.option("--run", type=arguments.FILE, help="A run's folder, for its model and adapter.")
@click.option("--adapter", type=arguments.FILE, help="An exported adapter's folder.")
@click.option("--base", default="", help="The base model of that adapter, if it has moved.")
@click.option("--model", default="mini", help="A base model: mini, a folder or a Hub id.")
@click.option("--tier", help="Answer like this budget tier of the run.")
@click.option("--top-k", type=int, help="Experts per token; the model's own number when omitted.")
@arguments.experts
@arguments.offload
@arguments.which
@click.option("--max-new-tokens", default=64, help="Length of the longest answer.")
def generate(
    prompt: tuple[str, ...],
    run: Path | None,
    adapter: Path | None,
    base: str,
    model: str,
    tier: str | None,
    top_k: int | None,
    experts: Any,
    offload: bool | None,
    which: str,
    max_new_tokens: int,
) -> None:
    """Answer prompts with a base model or a run's adapter.

    \b
    Examples:
      fedmoe generate --run runs/quickstart 'turn on the kitchen lights'
      fedmoe generate --run runs/quickstart --tier lowest 'set a timer for 5 minutes'
      fedmoe generate --adapter my-adapter --top-k 1 'is the door locked?'
      fedmoe generate --model mini --top-k 2 'what is a garden?'
      fedmoe generate --model ~/merged --experts int4 --offload 'what is a garden?'
    """
    if run is None and prompt and Path(prompt[0]).is_dir():
        raise FedMoEError(
            f"{prompt[0]} is a folder and no prompt; --run answers with the adapter of a run's "
            "folder, --model with a whole model"
        )
    _check(run, adapter, base, tier)
    if run is not None:
        sources.check_run(run, which, [tier] if tier else [])
    elif adapter is None:
        sources.check_source(model)
    else:
        sources.check_folder(adapter)
    arguments.one_thread()
    from fedmoe.export.generate import Generator

    loaded = _loaded(run, adapter, base, model, tier, which, experts, offload)
    loaded.use(next(iter(loaded.levels)), top_k)
    generator = Generator(loaded.model, loaded.tokenizer, loaded.text)
    for line in [" ".join(prompt)] if prompt else _lines():
        generator.answer(line, max_new_tokens, each=partial(print, end="", flush=True))
        print()


def _check(run: Path | None, adapter: Path | None, base: str, tier: str | None) -> None:
    """Refuse options that do not fit together."""
    if run is not None and adapter is not None:
        raise FedMoEError("--run and --adapter both name an adapter; give one of them")
    if base and adapter is None:
        raise FedMoEError("--base needs --adapter; --model names a base model alone")
    if tier and run is None:
        raise FedMoEError("--tier needs --run; an exported adapter is for one tier, or for none")


def _loaded(
    run: Path | None,
    adapter: Path | None,
    base: str,
    model: str,
    tier: str | None,
    which: str,
    *held: Any,
) -> Any:
    """Return the model that the options name, ready to be asked."""
    from fedmoe.export import loaded as models

    if run is not None:
        loaded = models.load_run(run, which, [tier or models.FULL], *held)
        if which == "best" or not loaded.complete:
            print(f"fedmoe: {loaded.note}", file=sys.stderr)
        return loaded
    if adapter is not None:
        # A merged one is a model of its own; what is neither is refused by what misses in it.
        if (adapter / "config.json").is_file():
            return models.load_model(str(adapter), *held)
        return models.load_adapter(adapter, base, *held)
    print(
        f"fedmoe: {model} is a base model here, without an adapter: it continues the prompt as "
        "it learned to in pretraining. --run FOLDER answers with a run's adapter.",
        file=sys.stderr,
    )
    return models.load_model(model, *held)


def _lines() -> Iterator[str]:
    try:
        yield from (line.removesuffix("\n") for line in sys.stdin)
    except UnicodeDecodeError as error:
        raise FedMoEError(f"the prompts are not UTF-8 text: {error.reason}") from error
