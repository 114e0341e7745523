"""Scoring at the clients: each on its own held-out rows, the sums added by the server."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from fedmoe.evaluation.evaluate import ClientScore, Evaluation, Sums, measure
from fedmoe.messages.records import Failure
from fedmoe.messages.scores import Scores, pack_scores, unpack_scores
from fedmoe.seeds import derive

if TYPE_CHECKING:
    from fedmoe.messages.records import Message, Task
    from fedmoe.rounds import Member
    from fedmoe.runs.client_side import ClientSide
    from fedmoe.runs.own_data import OwnData
    from fedmoe.runs.server_side import ServerSide


def score_own(client: ClientSide, message: Message, split: str) -> Message:
    """Return a client's sums over its rows of a split, with the adapter and k of the task.

    What it withholds is left out here, before anything is sent.

    Raises:
        WireError: the message is no task for a client that is here.
        DataError: its rows cannot be read.
    """
    started, task = time.monotonic(), client.read_task(message)
    setup, own = client.setup, cast("OwnData", client.rows).of(cast(str, task.key))
    found = own.sets.get(split)
    if "score" not in client.reports or found is None:
        withheld = "score" not in client.reports
        return pack_scores(Scores(split=split, withheld=withheld, rows=own.counts), task)
    adapter = client.deployed_adapter(task)
    client.configure(task, adapter)
    setup.model.load(adapter)
    setup.model.set_budget(task.top_k, task.rescaler)
    sums = measure(setup.model, setup.tokenizer, found, setup.experiment.evaluation)
    labels = {**sums.labels} if "labels" in client.reports else {}
    scores = Scores(
        split=split,
        examples=sums.examples,
        tokens=sums.tokens,
        loss=sums.loss,
        score=sums.score,
        exact_match=sums.exact_match,
        labels=labels,
        rows=own.counts,
        seconds=time.monotonic() - started,
    )
    return pack_scores(scores, task)


def read_scores(server: ServerSide, message: Message, task: Task, split: str) -> Scores:
    """Return the checked scores in an answer to a task.

    Raises:
        WireError: no honest client could send them.
    """
    e = server.setup.experiment
    most = getattr(e.evaluation, f"{split}_examples")
    length = e.text.max_length
    return unpack_scores(message, task, split, most_examples=most, most_tokens=length)


def chosen(members: Sequence[Member], most: int | None, seed: int) -> list[Member]:
    """Return the members that score, by number: all, or so many that the seed draws by name.

    Whether one is drawn does not depend on who else is there, but on how many come before it.
    """
    order = sorted(members, key=lambda m: derive(seed, "scored", m.name))
    return sorted(order[:most], key=lambda m: m.client)


@dataclass(frozen=True)
class Answers:
    """What the clients answered to one request for scores."""

    pairs: list[tuple[Task, Scores]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def gather(tasks: Sequence[Task], answers: Iterator[Scores | Failure]) -> Answers:
    """Return the answers, those that arrived apart from those that did not."""
    found = Answers()
    for task, answer in zip(tasks, answers, strict=True):
        if isinstance(answer, Failure):
            found.failures.append(answer)
        else:
            found.pairs.append((task, answer))
    return found


def evaluations(answers: Answers, split: str) -> Iterator[Evaluation]:
    """Yield one evaluation per tier that any client scored, from the sums of its clients."""
    for tier in dict.fromkeys(task.tier for task, _ in answers.pairs):
        of_tier = [(task, s) for task, s in answers.pairs if task.tier == tier]
        if not (scored := [(task, s) for task, s in of_tier if s.examples]):
            continue
        sums = Sums.total(_sums(scores for _, scores in scored))
        yield Evaluation(
            round=scored[0][0].round - 1,
            split=split,
            tier=tier,
            top_k=scored[0][0].top_k,
            **sums.means,
            examples=sums.examples,
            seconds=sum(scores.seconds for _, scores in scored),
            by_label=sums.by_label,
            clients=tuple(_client_score(task, s) for task, s in scored),
            withheld=sum(scores.withheld for _, scores in of_tier),
        )


def _sums(scores: Iterable[Scores]) -> Iterator[Sums]:
    for s in scores:
        yield Sums(
            examples=s.examples,
            tokens=s.tokens,
            loss=s.loss,
            score=s.score,
            exact_match=s.exact_match,
            labels=s.labels,
        )


def _client_score(task: Task, scores: Scores) -> ClientScore:
    (sums,) = _sums([scores])
    number = {"examples": scores.examples, "tokens": scores.tokens}
    return ClientScore(client=task.client, name=task.name, **number, **sums.means)
