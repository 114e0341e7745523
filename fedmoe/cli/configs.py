"""`fedmoe configs`: the configs that are shipped with the package."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedmoe.cli import arguments
from fedmoe.system.shipped import find_config, shipped_configs, shipped_folder

TAKES = "# Takes "
"""Opens the line of a config's comment that says how long it runs, and on what."""


@click.command()
@click.argument("name", type=arguments.CONFIG, required=False, help="The config to print.")
def configs(name: Path | None) -> None:
    """List the shipped configs, or print one to change it.

    Commands take a shipped config by its name, too: fedmoe run quickstart.

    \b
    Examples:
      fedmoe configs
      fedmoe configs quickstart > my.yaml
      fedmoe configs devices/phone > phone.yaml
    """
    folder = shipped_folder() / "configs"
    if name:
        inside = folder / f"{name}.yaml"
        path = inside if inside.exists() else find_config(name)
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    found = shipped_configs()
    width = max(map(len, found))
    for config, path in found.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        takes = [line for line in lines if line.startswith(TAKES)]
        print(f"{config:{width}}  {lines[0].removeprefix('# ')}")
        print(f"{'':{width}}  {''.join(takes).removeprefix('# ')}")
    devices = sorted(path.stem for path in (folder / "devices").glob("*.yaml"))
    print(f"\ndevices (devices.TIER=devices/NAME.yaml): {', '.join(devices)}")
