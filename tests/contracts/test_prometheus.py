"""Metrics as Prometheus reads them: names, types, units, and labels with anything in them."""

import math
import re

import pytest
from watched import answered, end, ended_round, failed, header, scored, whole_round, write

from fedmoe.cli.main import main
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.prometheus import CONTENT_TYPE, render_metrics

NAME, LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(rf"({NAME})\{{({LABEL}(?:,{LABEL})*)\}} (\S+)")


def parse(text):
    """Type and samples of each family, as the format's grammar has them; anything else fails."""
    types, samples, told = {}, {}, set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in told, f"{name} in two groups"
            told.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name in told
            types[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            name = match[1]
            assert [*types][-1] == name, "samples stand under their family"
            labels = tuple(sorted((k, unescape(v)) for k, v in re.findall(LABEL, match[2])))
            assert (name, labels) not in samples, "a sample is there once"
            samples[name, labels] = float(match[match.lastindex])
    return types, samples


def unescape(text):
    return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), text)


@pytest.fixture
def folder(tmp_path):
    lines = [header(), *scored(0, "test", 0.0), *whole_round(1), answered(2, 0)]
    lines += [failed(2, 1, "timeout", code="late"), answered(2, 2), answered(2, 3)]
    lines += [ended_round(2, failed=1), *scored(2, "validation", 0.6, loss=None)]
    write(tmp_path / "a", *lines, answered(3, 0), age=4)
    write(tmp_path / "b", header(1, name='odd "name" \\ of\ntwo lines'), *whole_round(1), end())
    write(tmp_path / "c", torn="{")
    return tmp_path


def test_all_that_is_counted_comes_back(folder):
    types, samples = parse(render_metrics(WatchedFolder(folder, lambda: 1000.0).read().runs))

    def value(name, **labels):
        return samples[f"fedmoe_{name}", tuple(sorted(labels.items()))]

    assert value("rounds", run="a") == 4
    assert value("rounds_finished_total", run="a") == 2
    assert value("clients_awaited", run="a") == 3
    assert value("client_answers_total", run="a", tier="high", status="ok") == 3
    assert value("client_answers_total", run="a", tier="high", status="failed") == 1
    assert value("client_failures_total", run="a", code="late") == 1
    assert value("message_bytes_total", run="a", tier="low", direction="up") == 5 * 90
    assert value("trained_tokens_total", run="a", tier="low") == 250
    assert value("client_seconds_total", run="a", tier="low") == 10
    assert value("score_ratio", run="a", tier="high", split="validation") == pytest.approx(0.7)
    assert value("score_ratio", run="a", tier="low", split="test") == 0.0
    assert math.isnan(value("loss", run="a", tier="low", split="validation"))
    assert value("run_phase", run="a", phase="running") == 1
    assert value("run_phase", run="a", phase="finished") == 0
    assert value("last_line_timestamp_seconds", run="a") == 996
    assert value("remaining_seconds", run="b") == 0
    assert value("unreadable", run="c") == 1
    (named,) = [
        dict(labels)["name"]
        for name, labels in samples
        if name == "fedmoe_run_info" and dict(labels)["run"] == "b"
    ]
    assert named == 'odd "name" \\ of\ntwo lines'
    assert types["fedmoe_rounds_finished_total"] == "counter"


def test_counters_end_with_total_and_nothing_else_does(folder):
    types, _ = parse(render_metrics(WatchedFolder(folder).read().runs))
    assert all((kind == "counter") == name.endswith("_total") for name, kind in types.items())
    assert len(types) > 15
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_counters_only_grow_while_a_run_goes_on(tmp_path):
    lines = [header(), *whole_round(1), *whole_round(2)]
    before: dict = {}
    for stop in range(2, len(lines) + 1):
        place = WatchedFolder(write(tmp_path, *lines[:stop]))
        types, samples = parse(render_metrics(place.read().runs))
        counters = {key: v for key, v in samples.items() if types[key[0]] == "counter"}
        assert all(v >= before.get(key, 0) for key, v in counters.items())
        before = counters


def test_a_file_for_the_textfile_collector_is_replaced_whole(folder, tmp_path, capsys):
    file = tmp_path / "fedmoe.prom"
    file.write_text("old")
    before = file.stat().st_ino
    assert main(["status", str(folder), "--prometheus", str(file)]) == 0
    assert parse(file.read_text())[1]
    assert file.stat().st_ino != before, "a reader must not see half of it"
    assert [p.name for p in tmp_path.iterdir() if "prom" in p.name] == ["fedmoe.prom"]
