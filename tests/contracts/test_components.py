"""Components by instance, name, `package.module:Name` and entry point; faults are told."""

import sys
from dataclasses import dataclass, replace
from typing import Annotated

import pytest
from own_components import install, on_path, write_components
from pydantic import ValidationError

from fedmoe.aggregation import STRATEGIES, FedAvg, Flame, Strategy
from fedmoe.config import Experiment
from fedmoe.config.components import components, for_nodes, untold
from fedmoe.config.load import json_schema, load, to_yaml
from fedmoe.data import Memory
from fedmoe.errors import ConfigError
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.section import Component, Open, section
from fedmoe.section.open import FROM


class Kind(Component):
    """The base of the components in these tests."""


@section
class Plain(Kind):
    name: str = "plain"


@section
class Closed(Kind):
    trim: float = 0.1
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.trim > 1:
            raise ValueError("trim is a share")


@dataclass(frozen=True)
class Standard(Kind):
    trim: float = 0.1


class Arguments(Kind):
    def __init__(self, trim: float = 0.1, words: tuple[str, ...] = ()):
        self.trim, self.words, self.doubled = trim, words, 2 * trim


class Bare(Kind):
    pass


class Forgetful(Kind):
    def __init__(self, trim: float = 0.1):
        pass


def function(example, answer):
    return 1.0


instance = Closed(trim=0.5)
HERE = __name__


@section
class Demo:
    kind: Annotated[Kind, Open("tests.kinds", Kind, ())]
    title: str = "demo"


@pytest.fixture
def demo(tmp_path):
    """Load a Demo, or an Experiment, from YAML text."""

    def load_text(text, *overrides, cls=Demo, **more):
        path = tmp_path / "demo.yaml"
        path.write_text(text, encoding="utf-8")
        return load(cls, path, overrides, **more)

    return load_text


@pytest.fixture
def faults(demo):
    """The lines that are printed for what cannot be loaded, without the heading."""

    def lines_of(text, *overrides, **more):
        with pytest.raises(ConfigError) as caught:
            demo(text, *overrides, **more)
        return [line.strip() for line in str(caught.value).splitlines()[1:]]

    return lines_of


@pytest.fixture
def own(tmp_path):
    """A folder with `my_rules` and `my_data`, on the import path."""
    with on_path(write_components(tmp_path / "own")) as folder:
        yield folder


INSTANCES = [Closed(trim=0.3, words=("a",)), Standard(0.4), Arguments(0.5, ("b", "c")), Bare()]


@pytest.mark.parametrize("value", INSTANCES, ids=lambda v: type(v).__name__)
def test_what_is_written_loads_as_an_equal_component(demo, value):
    config = replace(Demo(kind=value), title="x")
    assert config.kind is value
    text = to_yaml(config)
    assert f"name: {HERE}:{type(value).__name__}\n" in text
    assert demo(text) == config


def test_an_experiment_takes_an_instance_a_name_and_a_mapping():
    assert Experiment(aggregation="fedavg").aggregation == FedAvg()
    given = {"name": "flame", "temperature": 1.0}
    assert Experiment(aggregation=given).aggregation == Flame(temperature=1.0)
    named = Experiment(aggregation=f"{HERE}:Rule")
    assert named == Experiment(aggregation=Rule()) == replace(Experiment(), aggregation=Rule())
    assert named.aggregation.name == f"{HERE}:Rule"


class Rule(Strategy):
    pass


def test_a_bare_name_in_yaml_starts_from_the_default_and_takes_overrides(demo):
    for text in ("aggregation: flame", "aggregation: {name: flame}", ""):
        assert demo(text, cls=Experiment).aggregation == Experiment().aggregation
    mixed = demo("aggregation: fedavg", "aggregation.weighting=uniform", cls=Experiment)
    assert mixed.aggregation == FedAvg(weighting="uniform")
    assert demo("", "aggregation=fedavg", cls=Experiment).aggregation == FedAvg()


def test_a_module_may_hold_an_instance(demo):
    assert demo(f"kind: {HERE}:instance").kind is instance
    assert demo(to_yaml(demo(f"kind: {HERE}:instance"))).kind == instance


def test_every_fault_of_a_foreign_section_is_told_at_once(faults):
    assert faults(f"kind: {{name: '{HERE}:Closed', trmi: 1, words: [1]}}\ntitel: x") == [
        "kind.trmi: unknown key; did you mean kind.trim?",
        "kind.words.0: found 1, expected text; put it in quotes",
        "titel: unknown key; did you mean title?",
    ]
    assert faults(f"kind: {{name: '{HERE}:Closed', trim: 2}}") == ["kind: trim is a share"]


@pytest.mark.parametrize("name", ["Standard", "Arguments"])
def test_arguments_of_any_class_are_checked_by_their_annotations(faults, name):
    assert faults(f"kind: {{name: '{HERE}:{name}', trim: x, trin: 1}}") == [
        "kind.trim: found 'x', expected a number",
        "kind.trin: unknown key; did you mean kind.trim?",
    ]


FAULTY = {
    f"{HERE}:Clsed": f"module '{HERE}' has no 'Clsed'; did you mean 'Closed'?",
    f"{HERE}:function": f"'{HERE}:function' is no {HERE}.Kind",
    f"{HERE}:Demo": f"'{HERE}:Demo' is no {HERE}.Kind",
    "no_such.module:Thing": "there is no module 'no_such' here, which 'no_such.module:Thing' "
    "names; install its package, or run `fedmoe` in the folder that holds it",
    "json.nothing:Thing": "there is no module 'json.nothing' here, which 'json.nothing:Thing' "
    "names; install its package, or run `fedmoe` in the folder that holds it",
    "a b:Thing": "'a b:Thing' cannot be read; write package.module:Name",
    "Closed": "'Closed' is the name of nothing here; own code is named as package.module:Name",
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_name_that_leads_nowhere_is_told_at_its_place(faults, name):
    assert faults(f"kind: '{name}'") == [f"kind.name: {FAULTY[name]}"]
    assert faults(f"kind: {{name: '{name}', more: 1}}") == [f"kind.name: {FAULTY[name]}"]


def test_a_built_in_name_close_to_another_is_suggested(faults):
    (line,) = faults("upload: int5", cls=Experiment)
    assert line == (
        "upload.name: 'int5' is not one of 'none', 'bf16', 'int8', 'int4', 'top_k'; "
        "did you mean 'int8'?"
    )
    (line,) = faults("upload: zip", cls=Experiment)
    assert line.endswith("'top_k'; own code is named as package.module:Name")
    (line,) = faults("upload: 3", cls=Experiment)
    assert line.startswith("upload: found 3, expected one of 'none', ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("raise RuntimeError('no GPU')", "'broken' cannot be imported: RuntimeError: no GPU"),
        ("def (", "'broken' cannot be imported: SyntaxError: invalid syntax"),
        ("import nosuchlib", "'broken' needs the module 'nosuchlib', which is not here"),
    ],
)
def test_a_module_that_breaks_says_why(faults, own, text, line):
    (own / "broken.py").write_text(text)
    (found,) = faults("kind: broken:Thing")
    assert found.startswith(f"kind.name: {line}")


def test_a_class_a_wrong_object_and_a_nameless_extension_are_refused_in_python():
    with pytest.raises(ValidationError, match="not the class itself"):
        Experiment(aggregation=Flame)
    with pytest.raises(ValidationError, match=r"an instance of fedmoe\.aggregation\.\w+\.Strategy"):
        Experiment(aggregation=Closed())

    class Mine(Flame):
        pass

    with pytest.raises(ValidationError, match="reported under its name; put @section above"):
        Experiment(aggregation=Mine())
    mine = Experiment(aggregation=section(Mine)(temperature=1.0)).aggregation
    assert mine.name.endswith("Mine")
    assert replace(mine, temperature=2.0).temperature == 2.0


def test_entry_points_of_installed_packages_are_names(own, demo, faults):
    install(own, {"tests.kinds": {"closed": f"{HERE}:Closed"}})
    assert demo("kind: {name: closed, trim: 0.7}").kind == Closed(trim=0.7)
    assert f"name: {HERE}:Closed" in to_yaml(demo("kind: closed"))
    assert faults("kind: close") == [
        "kind.name: 'close' is not one of 'closed'; did you mean 'closed'?"
    ]
    install(own, {"tests.kinds": {"closed": f"{HERE}:Bare"}}, name="other")
    assert faults("kind: closed") == [
        f"kind.name: 'closed' may be {HERE}:Bare or {HERE}:Closed; write the one that is meant"
    ]


def test_a_built_in_name_is_never_an_entry_points(own, demo):
    install(own, {"fedmoe.strategies": {"flame": f"{HERE}:Rule"}})
    assert type(demo("aggregation: flame", cls=Experiment).aggregation) is Flame


class TestInMemory:
    """Objects that no file can hold: recorded readably, and refused where the file is loaded."""

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            (Forgetful(), "it has no attribute 'trim' for the argument of that name"),
            (Arguments(words=(print,)), "a field is no plain data: "),
        ],
    )
    def test_its_name_and_the_reason_are_written(self, value, why, faults):
        text = to_yaml(Demo(kind=value))
        assert f"  {FROM}: " in text
        assert f"memory ({why}" in text
        (line,) = faults(text)
        assert line.startswith("kind.name: ")
        assert "was an object of the program that wrote this file" in line
        assert why.rstrip(": ") in line
        assert line.endswith("give the object in Python again")

    def test_a_changed_attribute_is_not_lost(self):
        rule = Bare()
        rule.trim = 0.3
        assert "it holds more than its arguments say" in to_yaml(Demo(kind=rule))
        assert "memory" not in to_yaml(Demo(kind=Arguments(trim=0.3)))

    @pytest.mark.parametrize("metric", [lambda e, a: 1.0, "x".startswith])
    def test_a_function_without_a_name_in_a_module(self, metric):
        experiment = replace(Experiment(), evaluation=EvaluationSettings(metric=metric))
        assert f"    {FROM}: memory (" in to_yaml(experiment)

    def test_the_program_itself_is_written_by_its_name(self, monkeypatch):
        monkeypatch.setattr(Rule, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], "Rule", Rule, raising=False)
        experiment = Experiment(aggregation=Rule())
        assert "aggregation:\n  name: __main__:Rule\n" in to_yaml(experiment)
        assert FROM not in to_yaml(experiment).split("aggregation:")[1]
        with pytest.raises(ConfigError, match="defined in the program itself"):
            for_nodes(experiment)

    def test_of_code_that_cannot_be_told_no_later_run_is_the_same(self, demo):
        assert (
            untold(Experiment()) == untold(demo(f"aggregation: {HERE}:Rule", cls=Experiment)) == []
        )
        assert untold(Experiment(data=Memory(rows=[("a", "b")]))) == []

        class Local(Strategy):
            pass

        (why,) = untold(Experiment(aggregation=Local()))
        assert why.startswith("aggregation is ")
        assert "defined inside a function" in why


def test_components_are_found_at_any_depth():
    experiment = replace(Experiment(), evaluation=EvaluationSettings(metric=function))
    found = {".".join(c.path): c.foreign for c in components(experiment)}
    assert found["evaluation.metric"] is True
    assert found["aggregation"] is found["data"] is False
    assert len(found) == 9


def test_the_schema_lists_built_in_members_and_leaves_room_for_others():
    schema = json_schema(Experiment)
    *known, text, mapping = schema["properties"]["aggregation"]["anyOf"]
    assert [m["$ref"] for m in known] == [f"#/$defs/{kind.__name__}" for kind in STRATEGIES]
    assert text["type"] == "string"
    assert mapping["properties"]["name"]["anyOf"] == [{"pattern": ":"}]
    metric = schema["$defs"]["EvaluationSettings"]["properties"]["metric"]["anyOf"]
    assert metric[-1] == {"type": "null"}
