"""Scores per round and expert load as SVG inside the page: no script, no style attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from fedmoe.report.figures import spread
from fedmoe.report.units import percent_text
from fedmoe.watch.live.parts import Experts, Score, TierNow

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 38, 84, 12, 30
Place = Callable[[float, float], tuple[float, float]]
"""Where a round and a score are in the picture."""
NUM_COLOURS = 6
"""Colours and shapes of tiers in the style sheet; further tiers begin again."""
STRONGEST = 2.0
"""log2 of the relative load at which an expert's colour is full: a quarter, or four times."""


def score_lines(tiers: Sequence[TierNow], num_rounds: int, score_name: str) -> str:
    """Validation score against rounds, a line a tier; nothing before the first two scores.

    Tiers differ in colour and in the shape of their points, and are named at their lines' ends.
    """
    curves = {tier.name: _curve(tier) for tier in tiers}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    top = _ceiling(max(score for _, score in points))
    rounds = max(num_rounds, *(number for number, _ in points))

    def place(number: float, score: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * number / rounds
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * score / top

    parts = _axes(rounds, top, place)
    shown = [(i, tier) for i, tier in enumerate(tiers) if curves[tier.name]]
    ends = [place(*curves[tier.name][-1]) for _, tier in shown]
    beside = max(x for x, _ in ends) + 10
    heights = spread([y for _, y in ends], gap=15.0)
    for (i, tier), height in zip(shown, heights, strict=True):
        parts.append(_line(i, [place(*point) for point in curves[tier.name]]))
        name = tier.name if len(tier.name) <= 12 else f"{tier.name[:11]}\u2026"
        parts.append(_text(f"c{i % NUM_COLOURS}", beside, height + 4, name))
    words = "; ".join(
        f"{tier.name} {percent_text(curves[tier.name][-1][1])} after round "
        f"{curves[tier.name][-1][0]}"
        for _, tier in shown
    )
    title = f"Validation {score_name} per round"
    return _picture("scores", WIDTH, HEIGHT, title, words, parts)


def load_map(experts: Experts) -> str:
    """Layer by expert: blue is less than an equal share, orange is more; starved is crossed."""
    layers, number = len(experts.load), len(experts.load[0])
    # Few experts are drawn wide, many narrow, so that both fill a column and fit a phone.
    width = max(5.0, min(30.0, (WIDTH - LEFT) / number))
    height = max(10.0, min(20.0, 280 / layers))
    parts = []
    for y, layer in enumerate(experts.load):
        if layers <= 24 or y % 4 == 0:
            parts.append(_text("side", LEFT - 8, TOP + (y + 0.5) * height + 4, str(y)))
        for x, load in enumerate(layer):
            at = f'x="{LEFT + x * width:.1f}" y="{TOP + y * height:.1f}"'
            parts.append(_cell(at, width, height, load, f"layer {y}, expert {x}"))
    bottom = TOP + layers * height
    for x in range(0, number, math.ceil(number / 16)):
        parts.append(_text("below", LEFT + (x + 0.5) * width, bottom + 16, str(x)))
    title = (
        "Tokens per layer (down) and expert (across), all rounds so far. Orange: more than an "
        "equal share; blue: less; dashed: starved, below a tenth of it"
    )
    words = f"of {experts.num_experts} {experts.starved} starved, {experts.captured} captured"
    return _picture("load", LEFT + number * width + 1, bottom + 22, title, words, parts)


def _cell(at: str, width: float, height: float, load: float | None, where: str) -> str:
    size = f'width="{width - 1:.1f}" height="{height - 1:.1f}"'
    if load is None:
        return f'<rect class="none" {at} {size}><title>{where}: no tokens</title></rect>'
    strength = 1.0 if load == 0 else min(1.0, abs(math.log2(load)) / STRONGEST)
    kind = "less" if load < 1 else "more"
    share = f"{load:.2f} equal shares"
    if load < 0.1:
        kind, share = "starved", f"{share}, starved"
    if load > 2:
        share = f"{share}, captured"
    opacity = f'fill-opacity="{strength:.2f}"'
    return f'<rect class="{kind}" {at} {size} {opacity}><title>{where}: {share}</title></rect>'


def _curve(tier: TierNow) -> list[tuple[int, float]]:
    """Validation scores by round; the base model's test score is where the line starts."""

    def drawn(score: Score) -> bool:
        return score.split == "validation" or score.round == 0

    return [(s.round, s.score) for s in tier.scores if drawn(s) and s.score is not None]


def _ceiling(highest: float) -> float:
    """The end of an axis: a little above the highest score, in round numbers."""
    return next((top for top in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if highest <= top), highest)


def _axes(rounds: int, top: float, place: Place) -> list[str]:
    parts = []
    for step in range(5):
        _, y = place(0, top * step / 4)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("side", LEFT - 6, y + 4, f"{100 * top * step / 4:g}%"))
    for number in range(0, rounds + 1, max(1, math.ceil(rounds / 10))):
        x, _ = place(number, 0)
        parts.append(_text("below", x, HEIGHT - 10, str(number)))
    return parts


def _line(i: int, points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(_mark(i % NUM_COLOURS, x, y) for x, y in points)
    return f'<g class="c{i % NUM_COLOURS}"><polyline points="{path}"/>{marks}</g>'


def _mark(shape: int, x: float, y: float) -> str:
    """A circle, square, triangle, diamond, triangle upside down, or a cross."""
    corners = {
        1: [(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)],
        2: [(0, -4.5), (4.2, 3.5), (-4.2, 3.5)],
        3: [(0, -5), (5, 0), (0, 5), (-5, 0)],
        4: [(0, 4.5), (4.2, -3.5), (-4.2, -3.5)],
        5: [(-4, -4), (0, -1.2), (4, -4), (1.2, 0), (4, 4), (0, 1.2), (-4, 4), (-1.2, 0)],
    }.get(shape)
    if corners is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.8"/>'
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}"/>'


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _picture(
    kind: str, width: float, height: float, title: str, words: str, parts: Sequence[str]
) -> str:
    """A figure; `words` say what is to be seen to whoever cannot see it."""
    return (
        f'<figure><svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(f"{title}: {words}")}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(title)}.</figcaption></figure>"
    )
