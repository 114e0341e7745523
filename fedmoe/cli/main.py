"""The commands of `fedmoe`, and what becomes of their errors."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
from click.shell_completion import shell_complete

from fedmoe.cli.completion import VARIABLE
from fedmoe.errors import FedMoEError, FedMoEWarning

COMMANDS = (
    "init",
    "configs",
    "check",
    "run",
    "status",
    "watch",
    "generate",
    "serve",
    "evaluate",
    "explain",
    "export",
    "compare",
    "track",
    "plan",
    "models",
    "upcycle",
    "pretrain",
    "deploy",
    "schema",
    "completion",
)
"""Names of commands and of the files with them, in the order of `fedmoe --help`."""
FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
"""Errors of a disk or a folder, which the user can mend; others are faults of the program."""
INTERRUPTED = "; what was finished is kept; a run resumes with --resume auto"
RESUMED = ("run", "compare")
"""Commands that resume."""


class Commands(click.Group):
    """Commands in the order in which they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands]


@click.group(
    cls=Commands,
    commands=[getattr(import_module(f"fedmoe.cli.{name}"), name) for name in COMMANDS],
    context_settings={"show_default": True},
)
@click.version_option(package_name="fedmoe", message="fedmoe %(version)s")
def fedmoe() -> None:
    """Fine-tune sparse Mixture-of-Experts language models across machines of unlike budgets.

    Each client activates as many experts per token as it can afford and trains LoRA on every
    expert; the server averages each expert by data size and by how often clients used it.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 for a user's mistake, or 130 after Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if instruction := os.environ.get(VARIABLE):
        return shell_complete(fedmoe, {}, "fedmoe", VARIABLE, instruction)
    if (here := os.getcwd()) not in sys.path:
        # A folder of one's own may hold components; last, so that it hides no installed package.
        sys.path.append(here)
    words = [*(sys.argv[1:] if argv is None else argv)]
    try:
        # Not `fedmoe.main`, which takes an EOFError of ours for the end of the input.
        with _own_warnings(), fedmoe.make_context("fedmoe", words) as context:
            return fedmoe.invoke(context) or 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        if isinstance(error, click.MissingParameter):
            # click names the argument that is missing, and not what it takes.
            print(getattr(error.param, "help", None) or "", file=sys.stderr)
        return error.exit_code
    except FedMoEError as error:
        print(f"fedmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in FULL_OR_FORBIDDEN | IN_THE_WAY:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"fedmoe: error: {where}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = INTERRUPTED if words[:1] and words[0] in RESUMED else ""
        print(f"fedmoe: interrupted{more}", file=sys.stderr)
        return 130


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Print the library's warnings once, as one line each, without the place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", FedMoEWarning)
        show, said = warnings.showwarning, set[str]()

        def say(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, FedMoEWarning):
                if str(message) in said:
                    return  # such as of a model that is loaded again, to prove an export
                said.add(str(message))
                print(f"fedmoe: warning: {message}", file=sys.stderr, flush=True)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = say
        yield


if __name__ == "__main__":
    sys.exit(main())
