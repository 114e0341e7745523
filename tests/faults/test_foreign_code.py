"""Foreign code on other machines: what a node imports, and what the server tells it."""

import json
import sys

import pytest
from own_components import install, on_path, write_components

from fedmoe.aggregation import Strategy
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.components import for_nodes, foreign_code, told_to_nodes
from fedmoe.config.load import to_yaml
from fedmoe.data import Memory
from fedmoe.errors import ConfigError, FedMoEError
from fedmoe.models.pretrained_gating import gating_of
from fedmoe.section import ANYWHERE, Imports
from fedmoe.section.open import FROM


@pytest.fixture
def own(tmp_path):
    """A folder with `my_rules` and `my_data`, on the import path."""
    with on_path(write_components(tmp_path / "own")) as folder:
        yield folder


@pytest.fixture
def experiment(tmp_path):
    """Load an experiment from YAML text."""

    def load_text(text, imports=ANYWHERE):
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf-8")
        return load_experiment(path, (), imports)

    return load_text


@pytest.fixture
def faults(experiment):
    """The lines that are printed for what cannot be loaded, without the heading."""

    def lines_of(text, imports=ANYWHERE):
        with pytest.raises(ConfigError) as caught:
            experiment(text, imports)
        return [line.strip() for line in str(caught.value).splitlines()[1:]]

    return lines_of


class TestWhatANodeImports:
    """Only what its own config allows, and entry points of packages installed there."""

    @pytest.fixture
    def trap(self, own, tmp_path):
        """A module whose import leaves a file behind, and that file."""
        mark = tmp_path / "imported"
        text = f"open({str(mark)!r}, 'w').close()\n" + (own / "my_rules.py").read_text()
        (own / "trap.py").write_text(text)
        return mark

    @pytest.mark.parametrize("allowed", [(), ("trapped",), ("my_rules", "tra"), ("trap.more",)])
    def test_a_module_that_is_not_allowed_is_never_imported(self, trap, faults, allowed):
        text = "aggregation: {name: trap:Median, step: 0.5}\nseed: x"
        lines = faults(text, Imports(allowed))
        assert lines[0].startswith("aggregation.name: 'trap:Median' is not allowed here: no ")
        assert 'add allow="trap" to the node config' in lines[0]
        assert not trap.exists()
        assert "trap" not in sys.modules

    def test_one_that_is_allowed_is(self, trap, experiment):
        found = experiment("aggregation: trap:Median", Imports(("trap",)))
        assert found.aggregation.name == "trap:Median"
        assert trap.exists()

    def test_an_entry_point_is_allowed_by_its_installation_and_under_its_module_too(
        self, trap, own, experiment, faults
    ):
        install(own, {"fedmoe.strategies": {"my_median": "trap:Median"}})
        nothing = Imports(())
        for name in ("my_median", "trap:Median"):
            found = experiment(f"aggregation: {name}", nothing)
            assert found.aggregation.name == "trap:Median"
        (line,) = faults("aggregation: trap:length", nothing)
        assert "is not allowed here" in line

    @pytest.mark.parametrize("name", ["os:system", "builtins:eval", "subprocess:run"])
    def test_no_function_of_the_library_is_a_metric_there(self, faults, name):
        text = f"evaluation: {{metric: '{name}'}}"
        (line,) = faults(text, Imports(()))
        assert "is not allowed here" in line

    def test_another_version_is_refused(self, own, experiment, faults):
        install(own, {"fedmoe.strategies": {"median": "my_rules:Median"}}, version="1.2")
        text = "aggregation: {name: my_rules:Median, from: my-rules==%s}"
        assert experiment(text % "1.2").aggregation.step == 1.0
        (line,) = faults(text % "1.3")
        assert line == (
            "aggregation.name: 'my_rules:Median' is to be of my-rules==1.3, and here is "
            "my-rules==1.2; install the same on both sides"
        )
        assert "my_rules" in sys.modules  # by the first of the two

    def test_a_pretrained_models_folder_imports_nothing(self, trap, tmp_path):
        said = {"recipe": {"gating": {"name": "trap:Median"}}}
        (tmp_path / "pretraining.json").write_text(json.dumps(said))
        with pytest.raises(FedMoEError, match="does not say how its model chooses"):
            gating_of(tmp_path)
        assert not trap.exists()


class TestForNodes:
    """The server's record for clients on other machines."""

    def test_foreign_components_carry_their_version(self, own, experiment):
        asked = experiment("aggregation: my_rules:Median")
        digest = "sha256:"
        assert f"  name: my_rules:Median\n  step: 1.0\n  {FROM}: {digest}" in for_nodes(asked)
        install(own, {})
        assert f"  {FROM}: my-rules==1.2\n" in for_nodes(asked)
        assert foreign_code(asked) == "my_rules:Median (my-rules==1.2)"
        assert json.loads(told_to_nodes(asked)) == [
            ["fedmoe.strategies", "my_rules:Median", "my-rules==1.2"]
        ]
        assert experiment(for_nodes(asked)) == asked

    def test_a_file_that_was_changed_is_another_version(self, own, experiment, faults):
        text = for_nodes(experiment("aggregation: my_rules:Median"))
        (own / "my_rules.py").write_text((own / "my_rules.py").read_text() + "# changed\n")
        (line,) = faults(text)
        assert "'my_rules:Median' is to be of sha256:" in line

    def test_what_the_server_alone_needs_is_not_told(self, own, experiment):
        text = "server_optimizer: adam\nevaluation: {every: 3, metric: my_rules:length}"
        asked = experiment(text)
        told = experiment(for_nodes(asked))
        assert (told.server_optimizer.name, told.evaluation.metric) == ("none", None)
        assert told.evaluation.every == 3
        assert told_to_nodes(asked) == "[]"

    def test_metrics_are_told_where_clients_score_their_own_rows(self, own, experiment):
        metrics = "[exact_match, my_rules:length, token_f1]"
        asked = experiment(f"data: {{name: federated}}\nevaluation: {{metric: {metrics}}}")
        assert experiment(for_nodes(asked)) == asked
        ((group, name, version),) = json.loads(told_to_nodes(asked))
        assert (group, name) == ("fedmoe.metrics", "my_rules:length")
        assert f"    {FROM}: {version}\n" in for_nodes(asked)

    def test_of_built_in_components_alone_it_is_the_whole_experiment(self):
        assert for_nodes(Experiment()) == to_yaml(Experiment())

    def test_what_only_this_process_has_is_refused_with_all_of_it(self):
        class Local(Strategy):
            pass

        asked = Experiment(aggregation=Local(), data=Memory(rows=[("a", "b")]))
        with pytest.raises(ConfigError) as caught:
            for_nodes(asked)
        assert [fault.path for fault in caught.value.faults] == ["data", "aggregation"]
        assert "cannot hold 'memory': 1 rows, sha256:" in str(caught.value)
        assert "it is defined inside a function; move it" in str(caught.value)
