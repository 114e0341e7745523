"""The command `fedmoe deploy init` and its arguments."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from fedmoe.deploy.fleet import NODE_PORT, fleet_of

RAW = argparse.RawDescriptionHelpFormatter
EXAMPLES = """\
  fedmoe deploy init fleet --server fed.example.org --config configs/quickstart.yaml \\
      --clients berlin=high paris=medium rome=low
  fedmoe deploy init trial --server 127.0.0.1 --config configs/deploy/rehearsal.yaml \\
      --clients a=lowest,b=low,c=high"""
INIT_EXAMPLES = """\
  fedmoe deploy init fleet --server fed.example.org:8443 --config configs/quickstart.yaml \\
      --clients berlin=high paris=medium rome=low --set rounds=20
  fedmoe deploy init fleet --server 10.0.0.5 --config configs/own_rows.yaml \\
      --clients a=high,b=low --data a=/srv/rows.jsonl b=/data/rows.jsonl
  fedmoe deploy init trial --server 127.0.0.1:8000 --config configs/quickstart.yaml \\
      --clients a=high,b=low                     (all on this machine, to try it)

The folder's README.md goes on from there: what to copy where, start, submit, watch, resume."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `fedmoe deploy` takes."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command, name, summary, examples, declare in (
        (init, "init", "write the folder of a server and its clients", INIT_EXAMPLES, _init),
    ):
        sub = commands.add_parser(
            name,
            help=summary,
            description=inspect.getdoc(command),
            formatter_class=RAW,
            epilog=f"examples:\n{examples}",
        )
        sub.set_defaults(command=command)
        declare(sub)


def deploy(_: argparse.Namespace) -> None:
    """Make a server and its clients ready for separate machines."""
    raise AssertionError("argparse asks for a command")


def init(arguments: argparse.Namespace) -> None:
    """Write a folder with all that a server and its clients need: keys, scripts, services, README.

    Connections use TLS under a CA of this folder's own, and every client has a key by which the
    server knows it. The experiment gets as many clients as are named, each in its tier."""
    from fedmoe.deploy.app import experiment_for
    from fedmoe.deploy.folder import write_folder

    fleet = fleet_of(
        arguments.server, arguments.clients, arguments.data, arguments.node_port, arguments.insecure
    )
    experiment = experiment_for(fleet, arguments.config, arguments.set)
    write_folder(arguments.folder, fleet, experiment)
    print(f"{arguments.folder / 'README.md'}")


def _init(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="the folder to make; it must not exist")
    add(
        "--server",
        required=True,
        metavar="HOST[:PORT]",
        help="the server as clients reach it (port: 8443, or 8000 on loopback)",
    )
    add(
        "--clients",
        required=True,
        nargs="+",
        metavar="NAME=TIER",
        help="each client's name and its budget tier in the config; one machine each",
    )
    add("--config", required=True, type=Path, help="the experiment, a YAML file")
    add("--set", nargs="+", default=[], metavar="a.b=c", help="settings that replace the file's")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="where a client's machine keeps the data, if elsewhere than data.path",
    )
    add(
        "--node-port",
        type=int,
        default=NODE_PORT,
        metavar="PORT",
        help=f"first of the ports that clients use on their own loopback (default: {NODE_PORT})",
    )
    add(
        "--insecure",
        action="store_true",
        help="no TLS and no keys; only where the server is on loopback",
    )
