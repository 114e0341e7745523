"""`fedmoe deploy`: a server and its clients on separate machines."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments


@click.group()
def deploy() -> None:
    """Set up a server and its clients on separate machines."""


@deploy.command()
@click.argument("folder", type=arguments.FILE, help="The folder to make; it must not exist.")
@arguments.overrides
@click.option(
    "--server",
    required=True,
    metavar="HOST[:PORT]",
    help="The server as clients reach it; the port is 8443, or 8000 on loopback.",
)
@click.option(
    "--clients",
    required=True,
    multiple=True,
    metavar="NAME=TIER,...",
    help="Each client's name and its budget tier in the config; one machine each.",
)
@click.option("--config", required=True, type=arguments.CONFIG, help="The experiment.")
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=PATH",
    help="Where a client's machine has its own rows, which no other one reads; for each client.",
)
@click.option(
    "--node-port", default=9094, help="First of the ports that clients use on their own loopback."
)
@click.option("--insecure", is_flag=True, help="No TLS and no keys, for a server on loopback.")
def init(
    folder: Path,
    overrides: tuple[str, ...],
    server: str,
    clients: tuple[str, ...],
    config: Path,
    data: tuple[str, ...],
    node_port: int,
    insecure: bool,
) -> None:
    """Write a folder with keys, scripts, services and a README.

    Connections use TLS under a CA of this folder alone, and every client has a key by which the
    server knows it. The experiment gets as many clients as are named, each in its tier. The
    folder's README.md says what to copy where, and how to start, submit, watch and resume.

    \b
    Examples:
      fedmoe deploy init fleet --server fed.example.org --config quickstart \\
          --clients berlin=high,paris=medium,rome=low rounds=20
      fedmoe deploy init fleet --server 10.0.0.5 --config own_rows \\
          --clients a=high,b=low --data a=/srv/rows.jsonl b=/data/rows.jsonl
      fedmoe deploy init trial --server 127.0.0.1:8000 --config quickstart \\
          --clients a=high,b=low                     (all on this machine, to try it)
    """
    from fedmoe.deploy.fleet import fleet_of
    from fedmoe.system.extras import require

    require("fedmoe deploy", "deploy", "cryptography", "jinja2", "tomli_w")
    from fedmoe.deploy.app import experiment_for
    from fedmoe.deploy.folder import write_folder

    # `--data a=/x b=/y`: words after the first, too, name a client's rows.
    names = {pair.partition("=")[0] for named in clients for pair in named.split(",")}
    more = [word for word in overrides if data and word.partition("=")[0] in names]
    overrides = tuple(word for word in overrides if word not in more)
    fleet = fleet_of(server, clients, (*data, *more), node_port, insecure)
    write_folder(folder, fleet, experiment_for(fleet, config, overrides))
    print(f"{folder}: a server at {fleet.address} and {len(fleet.nodes)} client(s)")
    print(f"  {folder}/server: for the server")
    for node in fleet.nodes:
        print(f"  {folder}/clients/{node.name}: for that client's machine alone; tier {node.tier}")
    if not fleet.insecure:
        print(f"  {folder}/ca: for no machine; it holds the CA's key, so keep it offline")
    print(f"next: {folder}/README.md has every command, from copying to the report")
