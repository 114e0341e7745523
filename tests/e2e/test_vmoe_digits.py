"""`python -m simulations.vmoe_digits`, made small: it makes its base once and runs on it."""

import pytest

from fedmoe.report.ledger import read_ledger
from simulations import vmoe_digits

SMALL = [
    "rounds=1",
    "training.steps=2",
    "training.batch_size=4",
    "evaluation.every=0",
    "evaluation.test_examples=6",
    "adapter.rank=2",
]


def test_one_command_makes_the_base_and_runs_on_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="the extra `vision` is not installed")
    from fedmoe.base_models.pretraining import vision

    quick = vision.Base(steps=2)
    make = vision.make_base
    monkeypatch.setattr(vision, "make_base", lambda folder: make(folder, quick))
    monkeypatch.chdir(tmp_path)
    assert vmoe_digits.run([*SMALL, "name=first"]) == 0
    assert "making the base" in capsys.readouterr().out
    rows = read_ledger(tmp_path / "runs/first/ledger.jsonl")
    clients = [row for row in rows if row["kind"] == "client"]
    assert {row["top_k"] for row in clients} == {1, 2, 4}
    # 2 steps of 4 images; a client of fewer has smaller batches.
    assert all(row["tokens"] % 17 == 0 and row["tokens"] <= 2 * 4 * 17 for row in clients)
    assert vmoe_digits.run(["agregation.name=flame"]) == 2
    monkeypatch.setattr(vmoe_digits, "main", lambda argv: len(argv))
    assert vmoe_digits.run([]) == 2
    assert "making the base" not in capsys.readouterr().out
