"""The page of `fedmoe watch`: whole as the server sends it, renewed by a script where there is one.

There is one renderer, this one: the script asks for `/state.json` every two seconds, and takes the
new page's `main` when the state's `stamp` has changed. Without a script the page is a snapshot.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from fedmoe.report.page_parts import document, section
from fedmoe.report.page_style import STYLE as SHARED
from fedmoe.report.units import DASH, bytes_text, count_text, seconds_text
from fedmoe.watch.live import views
from fedmoe.watch.live.look import SCRIPT, STYLE
from fedmoe.watch.live.place import PlaceNow
from fedmoe.watch.live.state import RunNow, Unreadable
from fedmoe.watch.live.svg import load_map, score_lines


def render_run(now: RunNow, stamp: str, parent: str | None = None) -> str:
    """Return a run's page; every text that comes from the run is escaped.

    Args:
        now: the run.
        stamp: changes when the page would say anything new but the time.
        parent: the title of the page that lists it, if there is one.
    """
    plots = score_lines(now.tiers, now.num_rounds, now.score_name)
    plots += load_map(now.experts) if now.experts else ""
    body = [
        f'<nav><a href="/">\u2190 {escape(parent)}</a></nav>' if parent else "",
        _header(now),
        f'<p class="advice">{escape(now.advice)}</p>' if now.advice else "",
        section(views.scores(now)),
        f'<section><h2>Learning and routing</h2><div class="plots">{plots}</div></section>'
        if plots
        else "",
        section(views.clients(now)),
        section(views.quarantine(now)),
        section(views.costs(now)),
    ]
    return _page(f"{now.num_finished}/{now.num_rounds} {now.name}", body, stamp)


def render_place(place: PlaceNow, stamp: str) -> str:
    """Return the page of a folder with runs in it: a line a run, each with a link."""
    links = "".join(
        f'<li><a href="/?run={quote(run.run, safe="")}">{escape(run.run)}</a></li>'
        for run in place.runs
    )
    head = (
        f"<header><h1>{escape(place.title)}</h1>"
        f'<p id="pace">{escape(place.pace)}</p>{_bar(place.num_finished, place.num_known)}</header>'
    )
    runs = section(views.runs(place))
    return _page(place.title, [head, runs, f"<h2>Look at one</h2><ul>{links}</ul>"], stamp)


def render_fault(run: Unreadable, stamp: str, parent: str | None = None) -> str:
    """Return the page of a run that cannot be read."""
    back = f'<nav><a href="/">\u2190 {escape(parent)}</a></nav>' if parent else ""
    text = f'<header><h1>{escape(run.run)}</h1><p class="advice">{escape(run.error)}</p></header>'
    return _page(run.run, [back, text], stamp)


def content_security_policy() -> str:
    """What the page may load: its own style and script, by their hashes, and this server's state.

    Even a text that was not escaped could run nothing.
    """
    style, script = (_digest(text) for text in (SHARED + STYLE, SCRIPT))
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _page(title: str, body: Iterable[str], stamp: str) -> str:
    inner = "\n".join(part for part in body if part)
    main = f'<main data-stamp="{escape(stamp)}">\n{inner}\n</main>'
    return document(title, ['<p id="lost"></p>', main, f"<script>{SCRIPT}</script>"], STYLE)


def _header(now: RunNow) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in _facts(now)
        if value != DASH
    )
    return (
        f"<header>\n<h1>{escape(now.name)}</h1>\n"
        f'<div class="status {now.phase}">{now.phase}: round {now.round} of {now.num_rounds}</div>'
        f'\n<p id="pace">{escape(now.pace)}</p>\n{_bar(now.num_finished, now.num_rounds)}\n'
        f'<p class="headline">{escape(now.headline)}</p>\n<dl>{items}</dl>\n</header>'
    )


def _facts(now: RunNow) -> list[tuple[str, str]]:
    experts = now.experts
    down, up = (sum(getattr(t, n) for t in now.tiers) for n in ("bytes_down", "bytes_up"))
    return [
        ("Model", now.model),
        ("Aggregation", now.strategy),
        ("Rescaling", now.rescaling),
        ("Seed", str(now.seed)),
        ("Sent to clients", bytes_text(down or None)),
        ("Sent back", bytes_text(up or None)),
        ("Trained tokens", count_text(sum(t.tokens for t in now.tiers) or None)),
        ("Virtual time", seconds_text(now.virtual_clock)),
        ("Starved experts", f"{experts.starved} of {experts.num_experts}" if experts else DASH),
        ("Captured experts", f"{experts.captured} of {experts.num_experts}" if experts else DASH),
        ("Updates refused or lost", count_text(sum(q.count for q in now.quarantine) or None)),
        ("Workers replaced", count_text(now.num_replaced or None)),
    ]


def _bar(done: int, most: int) -> str:
    return f'<progress max="{max(most, 1)}" value="{done}">{done} of {most}</progress>'


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
