"""Scoring at the clients: each on its own held-out rows, the sums added by the server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from fedmoe.evaluation.evaluate import ClientScore, Evaluation, Measured, evaluation_of
from fedmoe.evaluation.metrics import of_owners
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
    found, e = own.sets.get(split), setup.experiment
    # No noise is on them, and the best adapter would be chosen by them.
    withheld = "score" not in client.reports or e.privacy is not None
    rows = None if e.hides_clients else own.counts
    if withheld or found is None:
        metric = of_owners(e.evaluation.metric, e.data).names[0]
        return pack_scores(Scores(split=split, metric=metric, withheld=withheld, rows=rows), task)
    adapter = client.deployed_adapter(task)
    client.configure(task, adapter)
    setup.model.load(adapter)
    setup.model.set_budget(task.top_k, task.rescaler)
    sums = Measured(setup.model, setup.tokenizer, found, e.evaluation.batch_size).sums()
    labels = sums.labels if "labels" in client.reports else {}
    seconds = time.monotonic() - started
    return pack_scores(replace(sums, labels=labels, rows=rows, seconds=seconds), task)


def read_scores(server: ServerSide, message: Message, task: Task, split: str) -> Scores:
    """Return the checked scores in an answer to a task.

    Raises:
        WireError: no honest client could send them.
    """
    e = server.setup.experiment
    most = getattr(e.evaluation, f"{split}_examples")
    length = e.text.max_length
    return unpack_scores(
        message,
        task,
        split,
        metrics=server.facts.metrics,
        most_examples=most,
        most_tokens=length,
        accounts=not e.hides_clients,
    )


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
        sums, first = Scores.total(scores for _, scores in scored), scored[0][0]
        yield evaluation_of(
            sums,
            first.round - 1,
            tier,
            first.top_k,
            sums.seconds,
            clients=tuple(_client_score(task, s) for task, s in scored),
            withheld=sum(scores.withheld for _, scores in of_tier),
        )


def _client_score(task: Task, scores: Scores) -> ClientScore:
    number = {"examples": scores.examples, "tokens": scores.tokens}
    return ClientScore(client=task.client, name=task.name, **number, **scores.means)
