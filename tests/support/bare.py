"""The wheel in a virtual environment with the core dependencies and nothing else, offline."""

import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def build_wheel(folder):
    """The project's wheel, in `folder`."""
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder))
    return Path(wheel)


def installed(requirements):
    """The distributions that requirements and what they require name, by name."""
    found, wanted = {}, [Requirement(text) for text in requirements]
    while wanted:
        requirement = wanted.pop()
        made = distribution(requirement.name)
        extras = {"", *requirement.extras}
        if found.get(requirement.name, (None, set()))[1] >= extras:
            continue
        found[requirement.name] = made, extras
        for text in made.requires or ():
            inner = Requirement(text)
            if not inner.marker or any(inner.marker.evaluate({"extra": e}) for e in extras):
                wanted.append(inner)
    return [made for made, _ in found.values()]


def environment(folder, wheel, requirements):
    """A new virtual environment; its packages are links to this environment's."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for made in installed(requirements):
        for top in {Path(str(file)).parts[0] for file in made.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(made.locate_file(top))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, timeout=300)
    return python


def run(python, *words, cwd, path=()):
    """A process of that environment, in which only `path` is ahead of its own packages."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    own |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "200"}
    command = [str(python), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=600)
