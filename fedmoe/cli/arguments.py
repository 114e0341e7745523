"""Arguments that several commands share."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fedmoe.system.files import expanded
from fedmoe.system.shipped import shipped_configs


class HomePath(click.Path):
    """A path with `~` written out: a shell does not do so behind an equals sign."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(value), param, ctx)


class ConfigFile(HomePath):
    """A YAML file; a shell completes to the names of the shipped ones, too."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [name for name in shipped_configs() if incomplete and name.startswith(incomplete)]
        # The file comes first: a shell that is told to look for files forgets what came before.
        return [CompletionItem(incomplete, type="file"), *map(CompletionItem, names)]


FILE = HomePath(path_type=Path)
CONFIG = ConfigFile(path_type=Path)
overrides = click.argument(
    "overrides",
    nargs=-1,
    metavar="[a.b=c]...",
    help="Settings in place of the file's: rounds=5 training.learning_rate=1e-3.",
)
experts = click.option(
    "--experts",
    type=click.Choice(["full", "int8", "int4"]),
    help="The form of frozen experts, as `frozen` of a tier, which is meant when omitted.",
)
offload = click.option(
    "--offload/--no-offload",
    default=None,
    help="Keep the experts in a file, and read those that the router asks for; as the tier does.",
)
any_folder = click.argument(
    "folder", type=FILE, help="The folder of a run or a comparison, or one that holds runs."
)
quiet = click.option("--quiet", is_flag=True, help="Print errors and the result alone.")
follow = click.option("--follow", is_flag=True, help="Continue until the end of each run.")
which = click.option(
    "--which",
    type=click.Choice(["last", "best"]),
    default="last",
    help="The adapter after the last or the best round.",
)


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Take a config and settings in place of its own."""
    text = "A YAML file, or the name of a shipped one (see fedmoe configs)."
    return click.argument("config", type=CONFIG, help=text)(overrides(command))


def one_thread() -> None:
    """Compute on one thread: the same bits as in every worker and on every node."""
    import torch

    torch.set_num_threads(1)


def end_like_ctrl_c() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what was finished is written down."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
