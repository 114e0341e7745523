"""`fedmoe completion`: a script by which a shell completes this command line."""

from __future__ import annotations

import click
from click.shell_completion import shell_complete

VARIABLE = "_FEDMOE_COMPLETE"
"""Set by the script when it asks for completions."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="The shell.")
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print a script by which a shell completes commands.

    \b
    Examples:
      source <(fedmoe completion bash)           (in ~/.bashrc)
      source <(fedmoe completion zsh)            (in ~/.zshrc, after compinit)
      fedmoe completion fish > ~/.config/fish/completions/fedmoe.fish
    """
    return shell_complete(context.find_root().command, {}, "fedmoe", VARIABLE, f"{shell}_source")
