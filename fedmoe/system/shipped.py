"""Files that travel with the package beside its code: configs, and the Flower app."""

from difflib import get_close_matches
from pathlib import Path

from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.system.files import expanded

BUNDLE = "bundle"
"""Folder of the package in which a wheel holds them; a checkout has them at its root."""


def shipped_folder() -> Path:
    """Return the folder of `configs/`, `clients/`, `server/` and pyproject.toml.

    They are read as files and never imported: whatever else is called `server` on this machine is
    not taken for them.

    Raises:
        FedMoEError: the installation is incomplete.
    """
    package = Path(__file__).parents[1]
    for folder in (package / BUNDLE, package.parent):
        if all((folder / name).exists() for name in ("configs", "server/app.py", "pyproject.toml")):
            return folder
    raise FedMoEError(f"{package} lacks the files that are shipped with it; reinstall fedmoe")


def shipped_configs() -> dict[str, Path]:
    """Return the shipped experiments and recipes by name, in alphabetical order."""
    return {path.stem: path for path in sorted((shipped_folder() / "configs").glob("*.yaml"))}


def find_config(path: Path | str) -> Path:
    """Return the file that a config is named by: its path, or the name of a shipped one.

    >>> find_config("quickstart").name
    'quickstart.yaml'

    Raises:
        ConfigError: a bare name of neither a file nor a shipped config.
    """
    path = expanded(path)
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    configs = shipped_configs()
    if path.name in configs or path.exists():
        return configs.get(path.name, path)
    near = get_close_matches(path.name, configs, n=2)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(
        str(path),
        [
            Fault(
                "", f"no such file, and no shipped config of this name{guess} (see fedmoe configs)"
            )
        ],
    )


def find_beside(path: str, folder: Path) -> Path:
    """Return the file that a config in `folder` names, or else the shipped one of that path.

    A shipped config that is copied elsewhere so keeps its `devices/phone.yaml`.
    """
    own = folder / expanded(path)
    if own.exists() or Path(path).is_absolute():
        return own
    shipped = shipped_folder() / "configs" / path
    return shipped if shipped.exists() else own
