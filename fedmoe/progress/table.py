"""The progress of a run on stdout: a live table, plain lines, or one JSON line per event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fedmoe.evaluation.evaluate import ClientScore, Evaluation
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.messages.rows import RowCounts
from fedmoe.progress.expected import expected_tiers
from fedmoe.progress.state import COMBINING, Done, Progress, left_text
from fedmoe.progress.view import LiveView, fitted
from fedmoe.report.fields import live_cells, live_headings
from fedmoe.report.text_table import TextTable
from fedmoe.report.units import listed, number_text, percent_text, seconds_text, shortened
from fedmoe.rounds import ServerState
from fedmoe.runs.display import Display
from fedmoe.runs.news import News, lowest, lowest_text, unscored_line, who_of
from fedmoe.runs.own_data import SERVER
from fedmoe.runs.roster import Attendance
from fedmoe.runs.workers import Injected
from fedmoe.system.json_text import json_text
from fedmoe.system.workforce import Replaced

if TYPE_CHECKING:
    from fedmoe.config import Experiment
    from fedmoe.training.steps import Steps

MOST_ROWS = 20
"""Clients shown at once."""
LINE_SECONDS = 30
"""Between two lines where nothing is redrawn."""
MOST_LETTERS = 24
"""Of a client's name."""
STYLES = {"waiting": "dim", "training": "cyan", "done": "green", "failed": "bold red"}


class LiveTable(LiveView, Display):
    """Shows a run on stdout.

    On a terminal, that is a table that is redrawn, else plain lines; with `json` one JSON line per
    event; with `quiet` only clients that fail.
    """

    def __init__(
        self,
        *,
        num_rounds: int,
        workers: int = 1,
        quiet: bool = False,
        json: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = Progress(num_rounds, workers, clock)
        self.quiet, self.json = quiet, json
        self.news, self.expected = News(), None
        self.said, self.left = clock(), threading.Event()
        super().__init__(console or Console(), drawn=not quiet and not json)

    def begun(self, what: str, done: int = 0, total: int = 0) -> None:
        if self.live and self.live.is_started:
            p, number = self.progress, f", {done} of {total} tiers" if total else ""
            self._now(phase=f"{what}{number}", started=p.started or p.clock())
        elif not (self.quiet or self.json or done or self.progress.tasks):
            self._line(f"{what}, {total} tiers" if total else what)

    def __enter__(self) -> Self:
        if not (self.live or self.quiet or self.json):
            threading.Thread(target=self._beats, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.left.set()
        super().__exit__(*error)

    @contextmanager
    def loading(self, experiment: Experiment) -> Iterator[None]:
        """Show the tiers; what is drawn is gone in the end, before workers are forked."""
        what = "loading the model and the data"
        if self.live is None:
            self.begun(what)
            yield
            return
        self.expected = expected_tiers(experiment)
        self._now(phase=what, started=self.progress.clock())
        self.live.transient = True
        try:
            with self.live:
                yield
        finally:
            self.live.transient = False

    def follow(self, steps: Steps) -> None:
        self._now(steps=steps)

    def resumed(self, round: int, records: Sequence[Mapping[str, Any]]) -> None:
        lines = [r for r in records if r["kind"] == "evaluation"]
        self._now(scores={(r["split"] == SERVER, r["tier"]): _evaluation(r) for r in lines})
        if not (self.quiet or self.json):
            self._line(f"resumed after round {round} of {self.progress.num_rounds}")

    def planned(self, tasks: Sequence[Task]) -> None:
        p = self.progress
        if p.steps:
            p.steps.clear()
        started = p.started if p.tasks or p.finished else p.clock()
        self._now(phase="training", started=started, tasks=tasks, answers={})
        if tasks:  # else nobody was reachable; the round's line says so
            names = {"names": [t.name for t in tasks]} if tasks[0].name else {}
            clients = [t.client for t in tasks]
            self._event("planned", round=tasks[0].round, clients=clients, **names)

    def answered(self, task: Task, answer: Update | Failure) -> None:
        shown = answer if isinstance(answer, Failure) else answer.reported()
        answers = {**self.progress.answers, task.client: shown}
        done = len(answers) == len(self.progress.tasks)
        self._now(answers=answers, phase=COMBINING if done else self.progress.phase)
        who: dict[str, Any] = {"round": task.round, "client": task.client}
        who |= {"name": task.name} if task.name else {}
        who |= {"tier": task.tier, "top_k": task.top_k}
        if isinstance(answer, Failure):
            self._event("client", **who, status="failed", reason=answer.reason)
            why = " ".join(answer.reason.split())
            if not self.json:
                self._line(f"round {task.round}: {task.who} failed: {why}")
            return
        if answer.top_k < task.top_k:
            who["top_k"] = answer.top_k
            if not self.json:
                self._line(
                    f"round {task.round}: {task.who} ran out of memory with "
                    f"k = {task.top_k} and trained with k = {answer.top_k}"
                )
        self._event("client", **who, status="ok", **answer.as_json())
        if answer.rows and not self.json:
            self._warn(*self.news.losses({task.client: (task.name, answer.rows)}))

    def finished(self, state: ServerState) -> None:
        p = self._now(finished=self.progress.finished + 1, phase="evaluating")
        ok = [a for a in p.answers.values() if not isinstance(a, Failure)]
        failed = len(p.answers) - len(ok)
        self._event("round", round=state.round, clients=len(p.tasks), failed=failed)
        if not (self.quiet or self.json or self.live):
            self._line(
                f"round {state.round}/{p.num_rounds}: {len(ok)} of {len(p.tasks)} clients, "
                f"{_reported(ok)}{seconds_text(p.elapsed)} elapsed{left_text(p)}"
            )

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        newest = {(e.split == SERVER, e.tier): e for e in evaluations}
        self._now(scores={**self.progress.scores, **newest})
        for e in evaluations:
            self._event("evaluation", **e.as_json())
        if self.quiet or self.json or self.live:
            return
        for split in dict.fromkeys(e.split for e in evaluations):
            found = [e for e in evaluations if e.split == split]
            scores = [
                f"{e.tier} (k={e.top_k})"
                + (f" {percent_text(e.score)}" if e.metric != "loss" else "")
                + f" loss {number_text(e.loss)}"
                + "".join(f" {name} {percent_text(mean)}" for name, mean in e.metrics.items())
                for e in found
            ]
            scores += [text] if (text := lowest_text(found)) else []
            rounds = f"round {found[0].round}/{self.progress.num_rounds}"
            self._line(f"{rounds}: {split} {', '.join(scores)}")

    def noted(self, notes: Sequence[str]) -> None:
        self._event("notes", notes=notes)
        if not self.json:
            for note in notes:
                if not self.quiet or note.startswith("warning"):
                    self._line(note)

    def met(self, attendance: Attendance) -> None:
        values = attendance.as_json()
        self._event(values.pop("kind"), **values)
        if (text := self.news.met(attendance)) and not (self.quiet or self.json):
            self._line(text)

    def unscored(self, task: Task, failure: Failure, split: str) -> None:
        who = {"round": task.round - 1, "client": task.client, "name": task.name}
        self._event("unscored", **who, split=split, reason=failure.reason)
        if not self.json:
            self._warn(unscored_line(task, failure, split))

    def withheld(self, tasks: Sequence[Task], split: str) -> None:
        clients, number = [task.client for task in tasks], tasks[0].round - 1
        self._event("withheld", round=number, split=split, clients=clients)
        if (text := self.news.withheld(tasks)) and not (self.quiet or self.json):
            self._line(text)

    def accounted(self, rows: Mapping[int, tuple[str, RowCounts]]) -> None:
        for client, (name, counts) in rows.items():
            self._event("rows", client=client, name=name, rows=counts.as_json())
        if self.json:
            return
        if (text := self.news.summed_up(rows)) and not self.quiet:
            self._line(text)
        self._warn(*self.news.losses(rows))

    def replaced(self, event: Replaced) -> None:
        """Show that a worker died, which the record of its client does not tell."""
        self._event("worker", **asdict(event))
        if not (self.quiet or self.json):
            self._line(replaced_line(event))

    def injected(self, event: Injected) -> None:
        """Show a fault that was injected into a client round."""
        self._event("fault", **asdict(event))
        if not (self.quiet or self.json):
            said = f"injected {event.fault}: {event.outcome}"
            self._line(f"round {event.round}: {who_of(event.client, self.progress.tasks)}: {said}")

    def _line(self, text: str) -> None:
        self.said = self.progress.clock()
        super()._line(text)

    def _beats(self) -> None:
        while not self.left.wait(1):
            self._beat()

    def _beat(self) -> None:
        """Say how far the clients are, if nothing was said for long."""
        p = self.progress
        if p.phase != "training" or p.clock() < self.said + LINE_SECONDS:
            return
        busy = [f"{t.who} at step {p.state_of(t)}" for t in p.tasks if p.share_of(t)]
        if busy:
            count = f"{len(p.answers)} of {len(p.tasks)} clients"
            where = f"round {p.tasks[0].round}/{p.num_rounds}"
            self._line(f"{where}: {count}, {listed(busy, 3)}{left_text(p)}")

    def _warn(self, *sentences: str) -> None:
        for text in sentences:
            self._line(f"warning: {text}")

    def _now(self, **changes: Any) -> Progress:
        self.progress = replace(self.progress, **changes)
        return self.progress

    def _event(self, kind: str, **values: object) -> None:
        if self.json:
            self._line(json_text({"kind": kind, **values}))

    def _render(self) -> Group:
        p, width = self.progress, self.console.width
        parts: list[Text | Table] = [_headline(p)]
        if self.expected and not (p.tasks or p.scores):
            parts += fitted(self.expected, width)
        if p.tasks:
            most = min(MOST_ROWS, max(3, self.console.height - 9 - len(p.scores)))
            parts += fitted(_clients(p, most), width, STYLES)
            if len(p.tasks) > most:
                failed = sum(isinstance(a, Failure) for a in p.answers.values())
                count = f"{len(p.answers)} of {len(p.tasks)} clients answered, {failed} failed"
                parts.append(Text(count, "dim"))
        if p.scores:
            parts += [Text(), *fitted(_scores(p), width)]
        return Group(*parts)


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    """Return an evaluation from its line in a ledger."""
    clients = tuple(ClientScore(**client) for client in record.get("clients") or ())
    known = {f.name for f in fields(Evaluation)} & record.keys()
    values: dict[str, Any] = {name: record[name] for name in known} | {"clients": clients}
    return Evaluation(**values)


def replaced_line(event: Replaced) -> str:
    """Return an event as a line of a log."""
    return f"{event.job} ended its worker ({event.ended_by}) and is repeated by another"


def _headline(p: Progress) -> Text:
    number = p.tasks[0].round if p.tasks else 0
    text = Text.assemble((f"round {number}/{p.num_rounds}", "bold"), f"  {p.phase}")
    if p.tasks:
        text.append(f"  {seconds_text(p.elapsed)} elapsed")
    elif p.started:
        text.append(f"  {seconds_text(p.clock() - p.started)}")
    if p.phase not in ("finished", "interrupted"):
        text.append(left_text(p))
    text.append("\n")
    return text


def _clients(p: Progress, most: int) -> TextTable:
    """Return a row per client of the round; of many, those around the ones in training."""
    columns, rows = ["client", "tier", "state", "k", *live_headings()], []
    end = min(len(p.tasks), max(most, len(p.answers) + p.workers + 1))
    for task in p.tasks[max(0, end - most) : end]:
        # As wide as the longest state, so that the table keeps its place while states change.
        who = [shortened(str(task.key), MOST_LETTERS), task.tier, f"{p.state_of(task):8}"]
        rows.append([*who, str(task.top_k), *_measured(p.answers.get(task.client))])
    return TextTable("", columns, rows, num_words=3)


def _measured(answer: Done | Failure | None) -> list[str]:
    # A failure's reason has a line above the table: here it would squeeze the other columns.
    if answer is None or isinstance(answer, Failure):
        return [""] * len(live_headings())
    return live_cells(answer)


def _scores(p: Progress) -> TextTable:
    last = [*p.scores.values()]
    others = list(dict.fromkeys(name for e in last for name in e.metrics))
    score = {e.metric: None for e in last}
    named = next(iter(score)) if len(score) == 1 and len(others) else "score"
    columns, clients = ["tier", "split", "k", "round", named, *others, "loss"], "lowest client"
    columns += [clients] if any(lowest([e]) for e in p.scores.values()) else []
    rows = []
    for e in p.scores.values():
        cells = [e.tier, e.split, str(e.top_k), str(e.round), percent_text(e.score)]
        cells += [percent_text(e.metrics.get(name)) for name in others] + [number_text(e.loss)]
        if clients in columns:
            found = lowest([e])
            name = shortened(found[1].name, MOST_LETTERS) if found else ""
            cells.append(f"{name} {percent_text(found[1].score)}" if found else "")
        rows.append(cells)
    return TextTable("", columns, rows, num_words=2)


def _reported(updates: Sequence[Done]) -> str:
    """Return tokens and losses of a round; nothing where they are withheld."""
    if updates and not any(updates):
        return ""
    tokens = sum(update["tokens"] for update in updates)
    return f"{tokens:,} tokens, local loss {_mean_losses(updates)}, "


def _mean_losses(updates: Sequence[Done]) -> str:
    if not updates:
        return "unknown"
    sides = (sum(u[side] for u in updates) for side in ("loss_before", "loss_after"))
    return " -> ".join(number_text(side / len(updates)) for side in sides)
