"""`fedmoe check`, a run, its ledger, manifest and reports give one account of all rows."""

import json
from html import unescape
from pathlib import Path

import pytest

from fedmoe.cli.main import main
from fedmoe.messages.rows import RowCounts
from fedmoe.report.ledger import read_ledger

OWN = str(Path(__file__).parents[2] / "configs" / "own_rows.yaml")
SMALL = [
    "rounds=1",
    "partition.num_clients=2",
    "training.steps=1",
    "training.batch_size=2",
    "training.probe_examples=2",
    "evaluation.validation_examples=3",
    "evaluation.test_examples=3",
    "evaluation.max_new_tokens=2",
    "data.unusable=drop",
]


def write_rows(path, *, faulty):
    rows = [{"prompt": f"name lamp {n // 2}", "response": f"lamp {n}"} for n in range(60)]
    if faulty:
        rows += [*rows[:4], {"prompt": "", "response": "a"}, {"prompt": 1, "response": "a"}]
        rows += [{"prompt": f"{n} " + "word " * 600, "response": "a"} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"data.path={path}"


@pytest.mark.filterwarnings("default::fedmoe.errors.FedMoEWarning")
def test_one_account_everywhere(tmp_path, capsys):
    asked = [OWN, write_rows(tmp_path / "rows.jsonl", faulty=True), *SMALL]
    asked.append(f"simulation.folder={tmp_path}")
    assert main(["check", *asked]) == 0
    checked = capsys.readouterr()
    assert main(["run", *asked, "name=all", "--quiet"]) == 0
    shown, folder = capsys.readouterr(), tmp_path / "all"

    header = next(r for r in read_ledger(folder / "ledger.jsonl") if r["kind"] == "run")
    counts = RowCounts.checked(header["rows"])
    assert counts.dropped == {"repeated": 4, "empty": 1, "refused": 1, "too_long": 3}
    assert (counts.read, counts.train + counts.validation + counts.test) == (69, 60)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == header["rows"]
    assert manifest["num_examples"] == counts.train
    assert f"rows: {counts}\n" in checked.out
    assert "  3 too long: more tokens than text.max_length\n" in checked.out
    assert f"3 of {counts.validation} held-out validation rows are scored" in checked.out
    assert f"- Rows: {counts}\n" in (folder / "summary.md").read_text()
    assert str(counts) in unescape((folder / "report.html").read_text())
    for said in (checked.err, shown.err):
        assert said.count(f"warning: 13% of the rows of the data are not used: {counts}") == 1


def test_nothing_is_warned_of_where_every_row_is_used(tmp_path, capsys):
    assert main(["check", OWN, write_rows(tmp_path / "rows.jsonl", faulty=False), *SMALL]) == 0
    shown = capsys.readouterr()
    assert "for testing, none dropped\n" in shown.out
    assert "not used" not in shown.err
