"""The report of invented runs: finished, interrupted, without a round, with many clients."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_folder import EXPERTS, LAYERS, TIERS, ledger_lines, make_run, plots_of

from fedmoe.errors import FedMoEError
from fedmoe.report import Ledger, write_report
from fedmoe.report.facts import headline, next_steps
from fedmoe.report.figures import FAINT, GRID, INK, MUTED, OF_PAGE, hex_colour, shades
from fedmoe.report.own_metrics import own_metrics
from fedmoe.report.plots import PLOTS
from fedmoe.report.run import flat, read_run
from fedmoe.report.run_tables import clients, failures, schedule, test_scores
from fedmoe.report.units import DASH
from fedmoe.system.package_data import package_text

pytestmark = pytest.mark.usefixtures("drawn")
test_scores.__test__ = False  # a table, not a test
ZERO = {"score": 0.0, "exact_match": 0.0}
POOLED = {*PLOTS} - {"client-scores", "epsilon-per-round"}
"""Plots of a run whose clients do not score on rows of their own."""


class Page(HTMLParser):
    """The tags, links and texts of a page; every tag must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawn):
    folder = make_run(tmp_path_factory.mktemp("runs") / "finished")
    write_report(folder)
    return folder


def test_a_finished_run_has_every_plot_small_enough_to_mail(finished):
    pictures = {path.stem: path.read_text() for path in (finished / "plots").iterdir()}
    assert set(pictures) == POOLED
    for text in pictures.values():
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert len(text) < 150_000


def test_the_page_needs_no_other_file(finished):
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == len(POOLED)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "script" not in page.tags
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text


def test_plots_take_their_colours_from_the_page(finished):
    """Else ink and paper would stay as they are in dark mode."""
    plots = (finished / "report.html").read_text(encoding="utf-8").partition("<svg")[2]
    for fixed in (INK, MUTED, FAINT, GRID, "#ffffff"):
        assert f": {fixed}" not in plots
    tier = hex_colour(shades([*TIERS])["large"])
    assert f"fill: {tier}; fill: oklch(from {tier} max(l, var(--least)) c h)" in plots
    style = package_text("fedmoe.report.templates", "style.css")
    assert all(style.count(f"{name}: ") >= 2 for name in {*OF_PAGE.values(), "--least"})


@pytest.mark.usefixtures("undrawn_here")
def test_the_commands_that_come_next_name_the_runs_folder(tmp_path):
    folder = make_run(tmp_path / "a b", num_rounds=1)
    assert next_steps(read_run(folder)) == []  # without an adapter
    (folder / "adapter-last.safetensors").touch()
    commands = [command for _, command in next_steps(read_run(folder))]
    assert commands[1:5] == [
        f"fedmoe serve '{folder}'",
        f"fedmoe evaluate '{folder}' --data FILE",
        f"fedmoe explain '{folder}'",
        f"fedmoe export '{folder}' my-adapter",
    ]
    write_report(folder)
    assert commands[0] in Page((folder / "report.html").read_text(encoding="utf-8")).texts
    assert f"`{commands[0]}`" in (folder / "summary.md").read_text(encoding="utf-8")
    cut = next_steps(read_run(make_run(tmp_path / "cut", finished=1)))
    assert cut == [("Continue it", "the same command again, with --resume auto")]


def test_the_developers_facts_come_last(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.index("<summary>Details") < page.index("9f2c" * 16)
    assert page.count("9f2c" * 16) == 1


def test_where_all_scores_are_the_same_the_loss_is_shown(tmp_path):
    folder = make_run(tmp_path / "zero", num_rounds=3)
    records = ledger_lines(folder)
    (folder / "ledger.jsonl").unlink()
    with Ledger(folder / "ledger.jsonl") as ledger:
        for record in records:
            ledger.append(record | (ZERO if record["kind"] == "evaluation" else {}))
    run = read_run(folder)
    assert headline(run).startswith("Test loss per token, averaged over 4 budget tiers, fell from")
    assert headline(run).endswith("; the exact match is 0.0% everywhere, before and after.")
    assert PLOTS["score-per-round"](run) is None
    assert PLOTS["score-over-time"](run) is None
    assert "loss" in PLOTS["test-scores"](run).get_suptitle()
    assert test_scores(run).columns[2:4] == ["loss before", "loss after"]


def test_the_page_shows_what_happened(finished):
    texts = Page((finished / "report.html").read_text(encoding="utf-8")).texts
    for expected in (
        "Finished",
        "12 of 12",
        "builtin:small-moe",
        "budget.levels.tiny",
        "3 min 30 s",
    ):
        assert expected in texts
    scores = {r["tier"]: r for r in ledger_lines(finished) if r.get("split") == "test"}
    for tier in TIERS:
        assert f"{100 * scores[tier]['score']:.1f}%" in texts


def test_text_of_the_run_is_escaped(finished):
    page = Page((finished / "report.html").read_text(encoding="utf-8"))
    assert not {"federated", "inf"} & set(page.tags)
    assert "home <federated> & friends" in page.texts
    assert "delta has a value of <inf> & more" in page.texts
    assert "<federated>" not in (finished / "summary.md").read_text(encoding="utf-8")


def test_the_headline_is_the_mean_over_tiers(finished):
    tests = [r for r in ledger_lines(finished) if r.get("split") == "test"]
    before, after = (sum(r["score"] for r in half) / 4 for half in (tests[:4], tests[4:]))
    expected = f"from {100 * before:.1f}% without an adapter to {100 * after:.1f}% after round 12"
    assert expected in (finished / "report.html").read_text(encoding="utf-8")
    assert expected in (finished / "summary.md").read_text(encoding="utf-8")


def test_a_report_is_the_same_when_written_again(finished):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    write_report(finished)
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_tiers_are_ordered_by_top_k_and_clients_with_them(finished):
    run = read_run(finished)
    assert [row[:2] for row in test_scores(run).rows] == [
        ["tiny", "1"],
        ["small", "2"],
        ["medium", "4"],
        ["large", "8"],
    ]
    assert [row[0] for row in clients(run).rows] == [*"1593726048"]


def test_a_clients_row_sums_its_rounds(finished):
    lines = [r for r in ledger_lines(finished) if r.get("client") == 3 and r["status"] == "ok"]
    table = clients(read_run(finished))
    row = dict(zip(table.columns, next(r for r in table.rows if r[0] == "3"), strict=True))
    assert (row["rounds"], row["failed"]) == ("11", "1")
    assert row["tokens"] == f"{sum(r['tokens'] for r in lines):,}"
    assert row["loss before"] == f"{lines[0]['loss_before']:.3f}"
    assert row["loss after"] == f"{lines[-1]['loss_after']:.3f}"


@pytest.mark.usefixtures("undrawn_here")
def test_own_metrics_have_a_table_only_where_there_are_some(finished, tmp_path):
    assert own_metrics(read_run(finished)).rows == []
    folder = make_run(tmp_path / "own", num_rounds=3)
    records = ledger_lines(folder)
    (folder / "ledger.jsonl").unlink()
    with Ledger(folder / "ledger.jsonl") as ledger:
        for record in records:
            if record.get("status") == "ok":
                norm = float(10 * record["round"] + record["client"])
                record = record | {"metrics": {"norm": norm}}
            ledger.append(record)
    first, *_, last = [
        [r["client"] for r in records if r.get("status") == "ok" and r["round"] == number]
        for number in (1, 2, 3)
    ]
    means = (10 + sum(first) / len(first), 30 + sum(last) / len(last))
    (row,) = own_metrics(read_run(folder)).rows
    assert row[0] == "norm"
    assert row[2:4] == [f"{mean:.3f}" for mean in means]
    write_report(folder)
    assert "Own metrics" in (folder / "summary.md").read_text(encoding="utf-8")
    assert "Own metrics" in (folder / "report.html").read_text(encoding="utf-8")


def test_failures_are_listed_with_their_reason(finished):
    expected = [["2", "3", "small", DASH, "delta has a value of <inf> & more"]]
    assert failures(read_run(finished)).rows == expected


def test_the_schedule_says_how_far_from_ideal_it_was(finished, tmp_path):
    run = read_run(finished)
    assert schedule(run).rows[1] == ["2", "10", "2", "25.0 s", "12.5 s", "13.8 s", "10.0%"]
    texts = Page((finished / "report.html").read_text(encoding="utf-8")).texts
    assert texts[texts.index("Over the ideal schedule") + 1] == "10.0%"
    assert "Workers replaced" not in texts
    folder = make_run(tmp_path / "replaced", finished=1)
    with Ledger(folder / "ledger.jsonl") as ledger:
        ledger.append({"kind": "worker", "pid": 7, "ended_by": "SIGKILL", "job": "client 3"})
        # As over Flower: nobody measured the schedule of this round.
        ledger.append({"kind": "round", "round": 2, "seconds": 1, "clients": 1, "failed": 0})
    run = read_run(folder)
    assert run.num_replaced == 1
    assert [row[0] for row in schedule(run).rows] == ["1"]


@pytest.mark.usefixtures("undrawn_here")
@pytest.mark.parametrize(
    ("rounds", "status", "absent"),
    [
        (5, "interrupted after round 5 of 12", {"test-scores"}),
        (0, "interrupted before round 1 of 12 was finished", POOLED - {"tier-costs"}),
    ],
)
def test_an_interrupted_run_says_so(tmp_path, rounds, status, absent):
    folder = make_run(tmp_path / "cut", finished=rounds)
    write_report(folder)
    assert status.capitalize() in Page((folder / "report.html").read_text(encoding="utf-8")).texts
    assert f"Status: {status}." in (folder / "summary.md").read_text(encoding="utf-8")
    assert plots_of(folder) == POOLED - absent


@pytest.mark.usefixtures("undrawn_here")
def test_only_the_ledger_is_needed(tmp_path):
    folder = make_run(tmp_path / "bare")
    for path in folder.iterdir():
        if path.name != "ledger.jsonl":
            path.unlink()
    write_report(folder)
    assert POOLED - plots_of(folder) == {"expert-load", "client-expert-load"}


def test_many_clients_are_shown_per_tier(tmp_path):
    folder = make_run(tmp_path / "many", num_clients=60, num_rounds=1)
    run = read_run(folder)
    figures = {name: draw(run) for name, draw in PLOTS.items()}
    assert len(figures["client-losses"].axes[0].get_yticklabels()) == len(TIERS)
    titles = [axes.get_title(loc="left") for axes in figures["client-expert-load"].axes]
    assert titles[:2] == ["tiny k=1 (15)", "small k=2 (15)"]


@pytest.mark.usefixtures("undrawn_here")
def test_losses_that_are_not_finite_leave_a_gap(tmp_path):
    folder = make_run(tmp_path / "diverged", num_rounds=3)
    records = ledger_lines(folder)
    (folder / "ledger.jsonl").unlink()
    with Ledger(folder / "ledger.jsonl") as ledger:
        for record in records:
            losses = {key: float("nan") for key in record if key.startswith("loss")}
            ledger.append(record | losses)
    assert (
        json.loads((folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()[1])["loss"]
        is None
    )
    write_report(folder)
    assert {"loss-per-round", "client-losses"} <= plots_of(folder)
    assert "nan" not in (folder / "summary.md").read_text(encoding="utf-8")


def test_of_a_round_done_again_the_later_records_count(tmp_path):
    folder = make_run(tmp_path / "resumed", num_rounds=3)
    end = read_run(folder).end
    again = next(r for r in ledger_lines(folder) if r["kind"] == "client") | {"tokens": 99_999}
    with Ledger(folder / "ledger.jsonl") as ledger:
        ledger.append(again)
    run = read_run(folder)
    assert (end is not None, run.end) == (True, None)
    assert run.ok(client=again["client"])[0]["tokens"] == 99_999
    assert len(run.clients) == 30


def test_a_folder_without_a_run_is_the_users_mistake(tmp_path):
    with pytest.raises(FedMoEError, match="cannot be read"):
        write_report(tmp_path)
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(FedMoEError, match="no `run` line"):
        write_report(tmp_path)


def test_the_expert_map_shows_the_sum_over_clients(finished):
    run = read_run(finished)
    figure = PLOTS["expert-load"](run)
    shown = figure.axes[0].images[0].get_array()
    total = run.by_client.sum(0)
    assert shown.shape == (LAYERS, EXPERTS)
    expected = total[2, 7] * EXPERTS / total[2].sum()
    assert shown[2, 7] == pytest.approx(expected)


def test_settings_are_shown_as_they_are_written(finished):
    settings = read_run(finished).settings
    assert settings["budget.country"] == "no"
    assert settings["training.learning_rate"] == "1e-3"
    assert settings["training.stops"] == "a, b"
    assert flat({"a": [{"b": 1}, {"b": 2}], "c": {}}) == {"a.0.b": "1", "a.1.b": "2", "c": "{}"}


def test_drawing_leaves_no_trace_in_pyplot(finished):
    code = (
        "import sys; from pathlib import Path; import fedmoe.report as r; "
        "assert 'matplotlib' not in sys.modules; r.write_report(Path(sys.argv[1])); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(finished)], check=True)


def test_a_wrong_tier_is_found_before_torch_is_loaded(finished):
    code = (
        "import sys; from fedmoe.cli.main import main; "
        "assert main(['generate', '--run', sys.argv[1], '--tier', 'hihg', 'hello']) == 2; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, finished], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("not one of 'tiny', 'small', 'medium', 'large'\n")
