"""`fedmoe watch`: a live page of runs, in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments


@click.command()
@arguments.any_folder
@click.option("--port", default=8765, help="A port of this machine; 0 takes any.")
@click.option("--open", "browse", is_flag=True, help="Open the page in a browser.")
def watch(folder: Path, port: int, browse: bool) -> None:
    """Serve a live page of runs, and metrics for Prometheus.

    The page is served on this machine alone, until Ctrl-C.

    \b
    Examples:
      fedmoe watch runs/quickstart --open
      fedmoe watch runs                          (all runs in the folder)
    """
    import webbrowser

    from fedmoe.watch.folder import MOST_BYTES, WatchedFolder
    from fedmoe.watch.server import Server

    arguments.end_like_ctrl_c()
    with Server(WatchedFolder(folder, most_bytes=MOST_BYTES), port) as server:
        try:
            print(f"watching {folder} at {server.url} (Ctrl-C ends this, not the run)", flush=True)
            if browse:
                webbrowser.open(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            print("no longer watching")
