"""The page of `fedmoe watch`: complete as the server sends it, renewed by a script if there is one.

There is one renderer, this one: the script asks for `/state.json` every two seconds, and takes the
new page's `main` when the state's `stamp` has changed. Without a script the page is a snapshot.
"""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote

from fedmoe.report.page import render
from fedmoe.system.json_text import json_text
from fedmoe.watch import tables
from fedmoe.watch.charts import load_chart, score_chart
from fedmoe.watch.state import FolderState, RunState, State

PACKAGE = "fedmoe.watch"


def render_state(now: State, parent: str | None = None) -> str:
    """Return the page of a run, of a run that cannot be read, or of a folder with runs.

    Args:
        parent: the title of the page that lists it, if there is one.
    """
    same = {"now": now, "stamp": stamp_of(now), "parent": parent}
    match now:
        case FolderState():
            links = {run.run: f"/?run={quote(run.run, safe='')}" for run in now.runs}
            same |= {"title": now.title, "runs": tables.runs(now), "links": links}
            return render(PACKAGE, "live_folder.html", **same)
        case RunState():
            return render(
                PACKAGE,
                "live_run.html",
                title=f"{now.num_finished}/{now.num_rounds} {now.name}",
                facts=now.facts,
                scores=tables.scores(now),
                score_chart=score_chart(now.tiers, now.num_rounds, now.score_name),
                load_chart=load_chart(now.experts) if now.experts else None,
                shown=[tables.clients(now), tables.failures(now), tables.costs(now)],
                **same,
            )
    return render(PACKAGE, "live_unreadable.html", title=now.run, **same)


def stamp_of(now: State) -> str:
    """Return a text that changes when a page would show anything new but the time."""
    text = json_text(now.without_clock.as_json())
    if isinstance(now, FolderState):
        text += str(now.num_known)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def content_security_policy() -> str:
    """Return what the page may load: its style and script, by their hashes, and the state.

    Even text that was not escaped could run nothing.
    """
    style, script = (_sha256(render(PACKAGE, name)) for name in ("style.css", "live.js"))
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
