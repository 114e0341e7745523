"""The commands `fedmoe status` and `fedmoe watch`, and their arguments."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

PORT = 8765
WIDTH = 160
"""Columns where stdout is a file or a pipe."""
STATUS_EXAMPLES = """\
  fedmoe status runs/quickstart
  fedmoe status runs/quickstart --follow
  fedmoe status runs/compare_flame           (a line a run)
  fedmoe status runs --follow --prometheus /var/lib/node_exporter/fedmoe.prom"""
WATCH_EXAMPLES = """\
  fedmoe watch runs/quickstart --open
  fedmoe watch runs                          (all runs in there; metrics for Prometheus, too)"""


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `fedmoe status` takes."""
    add = parser.add_argument
    add("run", type=Path, help="a run's folder, a comparison's, or one with runs in it")
    add("--json", action="store_true", help="print all of it as JSON")
    add("--follow", action="store_true", help="go on until the end of each run")
    add("--prometheus", type=Path, metavar="FILE", help="also write metrics for a collector")


def watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `fedmoe watch` takes."""
    add = parser.add_argument
    add("run", type=Path, help="a run's folder, a comparison's, or one with runs in it")
    add("--port", type=int, default=PORT, help=f"of this machine (default: {PORT}; 0: any)")
    add("--open", action="store_true", help="open the page in a browser")


def status(arguments: argparse.Namespace) -> None:
    """Show the progress of a run: round, clients, scores, experts, failures, time left."""
    from rich.console import Console

    from fedmoe.watch.folder import WatchedFolder
    from fedmoe.watch.status import follow, show

    folder = WatchedFolder(arguments.run)
    one = follow if arguments.follow else show
    # Where nobody says how wide the paper is, a table of many tiers must not be cut off.
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console() if wide else Console(width=WIDTH)
    one(folder, console, json=arguments.json, prometheus=arguments.prometheus)


def watch(arguments: argparse.Namespace) -> None:
    """Serve a live page of a run on this machine, until Ctrl-C; and metrics for Prometheus."""
    import webbrowser

    from fedmoe.watch.folder import WatchedFolder
    from fedmoe.watch.server import Server

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    with Server(WatchedFolder(arguments.run), arguments.port) as server:
        try:
            print(f"watching {arguments.run} at {server.url} (Ctrl-C ends this, not the run)")
            sys.stdout.flush()
            if arguments.open:
                webbrowser.open(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            print("no longer watching")
