"""Packages that only some commands need: `pip install 'fedmoe[report]'` and its like."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from fedmoe.errors import FedMoEError


def missing(*packages: str) -> list[str]:
    """Return the packages that are not installed, without importing any."""
    return [package for package in packages if find_spec(package) is None]


def require(purpose: str, extra: str, *packages: str) -> None:
    """Refuse what cannot be done for lack of a package.

    Args:
        purpose: the subject of the sentence, such as `fedmoe plan`.
        extra: the extra of this project that brings the packages.
        packages: their names, as they are imported.

    Raises:
        FedMoEError: one of them is not installed; it names the command that installs it.
    """
    if lacking := missing(*packages):
        raise FedMoEError(
            f"{purpose} needs {' and '.join(lacking)}, which is not installed; "
            f"run: {install(extra)}"
        )


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of the distributions that are installed, by name."""
    found = {}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def install(extra: str) -> str:
    """Return the command that installs an extra of this project."""
    return f"pip install 'fedmoe[{extra}]'"
