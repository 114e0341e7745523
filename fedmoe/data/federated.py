"""Data that come split by client: each owner's rows in its own file, folder, or part of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fedmoe.data.columns import Row, Unusable, columns_of, too_many
from fedmoe.data.examples import SPLITS, Example, Splits
from fedmoe.data.files import READERS, check_is_file, read_rows
from fedmoe.data.partition import Natural
from fedmoe.data.table import TOOLS, Table, tools_file
from fedmoe.errors import DataError, Fault
from fedmoe.messages.rows import RowCounts
from fedmoe.section import section
from fedmoe.system.files import expanded

CLIENT_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,59}", re.ASCII)
"""The whole of a client's id."""

ClientName = Annotated[str, Field(pattern=rf"^{CLIENT_NAME.pattern}$")]


@section
class Federated(Table):
    """Rows that come split by client. Each client is known by name and holds rows of its own.

    `path` says where they are: a folder, a glob or a list of files, each of which is a client with
    the file's stem as its id; with `column`, one file in which a column holds the id; or a mapping
    of ids to paths. In place of a file a client may have a folder with `train.jsonl` and, if it
    has them, `validation.jsonl` and `test.jsonl` (or .json, .csv, .parquet).

    On nodes `path` is not used: each node's own config says which rows are there, and the server
    opens none. Validation and test rows are split off by the client, from its own rows and the
    seed, unless it brings them.

    Example:
        >>> Federated(path={"berlin": "rows/berlin.jsonl", "paris": "rows/paris.jsonl"}).path
        {'berlin': 'rows/berlin.jsonl', 'paris': 'rows/paris.jsonl'}
    """

    name: Literal["federated"] = "federated"
    path: str | tuple[str, ...] | dict[str, str] = ""
    """Where the clients' rows are; relative to the folder the command runs in."""
    column: str = ""
    """Column of one file that holds each row's client, as text or an integer."""
    clients: tuple[ClientName, ...] = ()
    """The clients of the run, in the order of their numbers; on nodes those listed are waited for,
    and others take no part. Empty: all that are there, by name."""
    server_test: str = ""
    """A file of the server's own rows, on which the global adapter is scored at every tier, beside
    the clients' scores on their own rows."""

    def load(self, seed: int) -> Splits:
        """Refuse: no process holds the rows of all clients.

        Raises:
            DataError: always.
        """
        raise DataError(
            "data.name 'federated' has no pooled form, since each client holds its own rows; use "
            "data.name 'files' with a partition to share out one data set"
        )

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield what clients that hold their own rows, and come and go, leave open."""
        if experiment.aggregation.asynchronous and experiment.clients_per_round is None:
            said = "missing: how many clients are at work at one time, whoever else comes or goes"
            yield Fault("clients_per_round", said)
        if self.server_test and experiment.aggregation.personal:
            named = f"aggregation.name {experiment.aggregation.name!r}"
            said = f"the server has no model to score: with {named} each client keeps a part of it"
            yield Fault("data.server_test", said)
        if experiment.evaluation.best == "server" and not self.server_test:
            yield Fault(
                "evaluation.best", "'server' needs rows of the server; set data.server_test"
            )

        yield from unknown_names(experiment, self.clients) if self.clients else ()
        if experiment.partition != Natural():
            said = "shares out one pooled data set; here each client has its own rows: leave it out"
            yield Fault("partition", said)

    def __post_init__(self) -> None:
        if repeated := [name for name, n in Counter(self.clients).items() if n > 1]:
            raise ValueError(f"client {repeated[0]!r} is listed twice")
        if self.column and not isinstance(self.path, str):
            raise ValueError("column is for one file; give its path as text")


def unknown_names(experiment: Any, names: Collection[str]) -> Iterator[Fault]:
    """Yield settings that name a client which is none of those, and so would have no effect."""
    rules = experiment.membership
    named = {f"budget.tiers.{t}.clients": of.clients for t, of in experiment.budget.tiers.items()}
    named |= {"membership.joins": [*rules.joins], "membership.leaves": [*rules.leaves]}
    for path, clients in named.items():
        if unknown := [str(client) for client in clients if str(client) not in names]:
            there = ", ".join(sorted(names))[:200]
            yield Fault(path, f"there is no client {unknown[0]!r}; clients are {there}")


@dataclass(frozen=True)
class Source:
    """The files of one client."""

    train: Path
    validation: Path | None = None
    test: Path | None = None


class LocalData:
    """The clients whose rows are on this machine; a client's rows are read when asked for.

    Example:
        >>> LocalData(Federated(path="no/such/folder")).names
        Traceback (most recent call last):
        fedmoe.errors.DataError: no/such/folder: no such file; there is no folder no/such either
    """

    def __init__(self, dataset: Federated) -> None:
        self.dataset = dataset

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the clients in the order of `clients`, or of their names; nothing is read unless
        a column names them.

        Raises:
            DataError: a path that does not exist, a name that cannot be a client's, or a client
                that is listed and not there.
        """
        there = self._there
        if bad := [name for name in there if not CLIENT_NAME.fullmatch(name)]:
            raise DataError(
                f"{self.dataset.path}: {bad[0]!r:.80} cannot be a client's id; expected at most 60 "
                "letters, digits, '.', '_' or '-', the first a letter or a digit"
            )
        if missing := [name for name in self.dataset.clients if name not in there]:
            raise DataError(
                f"data.clients lists {missing[0]!r}, whose rows are not in {self.dataset.path}; "
                f"the clients there are {', '.join(sorted(there))[:200]}"
            )
        return self.dataset.clients or tuple(sorted(there))

    @property
    def _there(self) -> Mapping[str, object]:
        """Return all clients that are there, by name."""
        return self._by_value if self.dataset.column else self.sources

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Return each client's files."""
        return dict(find_sources(self.dataset.path))

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Return the clients that are there and take no part, as `clients` does not list them."""
        return tuple(sorted({*self._there} - {*self.names}))

    @cached_property
    def ignored(self) -> tuple[str, ...]:
        """Return the files of the folder that are no client's."""
        path = self.dataset.path
        if self.dataset.column or not isinstance(path, str) or not expanded(path).is_dir():
            return ()
        trained = [source.train for source in self.sources.values()]
        used = {p for train in trained for p in (train, train.parent, tools_file(train))}
        return tuple(sorted(p.name for p in expanded(path).iterdir() if p not in used))

    def splits(self, name: str, seed: int) -> Splits:
        """Return one client's examples, split by the client from its own rows and the seed.

        Raises:
            DataError: the rows cannot be read or used.
        """
        data = self.dataset
        if data.column:
            path, rows, own = expanded(str(data.path)), self._by_value[name], {}
        else:
            source = self.sources[name]
            path, rows = source.train, read_rows(source.train)
            own = {s: self.read(p) for s in SPLITS[1:] if (p := getattr(source, s)) is not None}
        shares = {f"{split}_share": 0.0 for split in own}
        cut = replace(data, **shares).cut(*self._usable(path, rows), seed)
        return joined(replace(cut, form=data.form(str(path), columns_of(rows))), own)

    def read(self, path: Path) -> tuple[tuple[Example, ...], RowCounts]:
        """Return the different examples of a file, and the counts of its other rows."""
        return self._usable(path, read_rows(path))

    def _usable(
        self, path: Path, rows: Sequence[Row | Unusable]
    ) -> tuple[tuple[Example, ...], RowCounts]:
        found = self.dataset.examples(str(path), columns_of(rows), rows, path)
        return self.dataset.usable(str(path), found)

    @cached_property
    def _by_value(self) -> dict[str, list[Row]]:
        """Return the rows of the file by the client that the column names."""
        path, column = expanded(str(self.dataset.path)), self.dataset.column
        found: dict[str, list[Row]] = {}
        every = read_rows(path)
        if unread := [row for row in every if isinstance(row, Unusable)]:
            # Never dropped: nobody can say whose they are.
            raise too_many(str(path), "row(s) cannot be read", unread)
        for where, row in (row for row in every if not isinstance(row, Unusable)):
            value = row.get(column)
            if type(value) not in (int, str) or value == "":
                raise DataError(
                    f"{where}: column {column!r} is {value!r:.40}; expected the client's id, as "
                    "text or an integer"
                )
            found.setdefault(str(value), []).append((where, row))
        return found


def find_sources(path: str | tuple[str, ...] | Mapping[str, str]) -> Iterator[tuple[str, Source]]:
    """Yield each client with its files.

    Raises:
        DataError: nothing is there, or two files would be the same client's.
    """
    if isinstance(path, Mapping):
        yield from ((name, _source(expanded(place))) for name, place in path.items())
        return
    places = _places([path] if isinstance(path, str) else path)
    names: dict[str, Path] = {}
    for place in places:
        name = place.name if place.is_dir() else place.stem
        if name in names:
            raise DataError(
                f"{names[name]} and {place} would both be client {name!r}; rename one, or give "
                "data.path as a mapping of ids to paths"
            )
        names[name] = place
        yield name, _source(place)


def _places(paths: Iterable[str]) -> Iterator[Path]:
    """Yield the files and folders of clients that paths, folders and globs name."""
    for path in paths:
        if not path:
            raise DataError("data.path is empty: name a folder with a file for each client")
        if has_magic(path):
            found = [p for p in map(Path, sorted(glob(str(expanded(path))))) if _is_client(p)]
        elif expanded(path).is_dir():
            found = [p for p in sorted(expanded(path).iterdir()) if _is_client(p)]
        else:
            check_is_file(expanded(path))
            found = [expanded(path)]
        if not found:
            kinds = ", ".join(READERS)
            raise DataError(f"{path}: no client's file there; expected files such as {kinds}")
        yield from found


def _is_client(path: Path) -> bool:
    if path.is_dir():
        return _split_file(path, "train") is not None
    return path.suffix.lower() in READERS and not path.name.endswith(TOOLS)


def _source(path: Path) -> Source:
    if not path.is_dir():
        return Source(path)
    if (train := _split_file(path, "train")) is None:
        raise DataError(f"{path}: is a folder without train.jsonl; a client's folder needs one")
    return Source(train, _split_file(path, "validation"), _split_file(path, "test"))


def _split_file(folder: Path, split: str) -> Path | None:
    files = (folder / f"{split}{suffix}" for suffix in READERS)
    return next((path for path in files if path.is_file()), None)


def joined(cut: Splits, own: Mapping[str, tuple[tuple[Example, ...], RowCounts]]) -> Splits:
    """Return splits with the held-out examples that a client brought in place of those cut off.

    Examples that are trained on are not scored, too: those are left out of what it brought, and
    counted as repeated.
    """
    train, fresh, dropped = set(cut.train), {}, cut.dropped
    for split, (rows, others) in own.items():
        fresh[split] = tuple(e for e in rows if e not in train)
        dropped += others + RowCounts.of(repeated=len(rows) - len(fresh[split]))
    return replace(cut, **fresh, dropped=dropped)
