"""From a file, overrides and defaults to one configuration, and back to YAML."""

from dataclasses import replace
from pathlib import Path

import pytest
from demo_config import FLAME, Budget, Demo, FedAvg, Flame, Tier, Training
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.config.load import load, to_yaml
from fedmoe.config.overrides import apply_overrides
from fedmoe.config.place import Place


class TestDefaults:
    def test_a_mentioned_section_keeps_the_rest_of_its_default(self, demo):
        assert demo("training: {clip: 1}").training == Training(epochs=2, clip=1.0)

    def test_a_union_without_a_name_keeps_the_name_and_values_of_its_default(self, demo):
        assert demo("aggregation: {temperature: 2}").aggregation == replace(FLAME, temperature=2.0)
        assert demo("aggregation: {warmup: {}}").aggregation == FLAME
        assert demo("aggregation: {name: flame}").aggregation == FLAME

    def test_another_member_starts_from_its_own_defaults(self, demo):
        assert demo("aggregation: {name: fedavg}").aggregation == FedAvg()
        assert demo("second: {name: flame, warmup: {}}").second == Flame(
            warmup=FedAvg(momentum=0.5)
        )

    def test_an_optional_section_can_be_turned_on(self, demo):
        assert demo("extra: {clip: 1.0}").extra == Training(clip=1.0)

    def test_lists_and_free_mappings_are_replaced_whole(self, demo):
        budget = demo("budget: {tiers: {mid: {top_k: 2}}, order: [{device: x}]}").budget
        assert budget.tiers == {"mid": Tier(top_k=2)}
        assert budget.order == (Tier(device="x"),)


class TestOverrides:
    def test_they_set_scalars_and_flow_values(self, demo):
        config = demo(
            "training: {epochs: 3}",
            "training.epochs=4",
            "path=x.json",
            "training.sizes=[4, 5]",
            "second={name: fedavg, momentum: 1e-1}",
            "title=a=b",
            "extra.clip=1",
        )
        assert config == Demo(
            training=Training(epochs=4, sizes=(4, 5)),
            path=Path("x.json"),
            second=FedAvg(momentum=0.1),
            title="a=b",
            extra=Training(clip=1.0),
        )

    def test_the_last_one_wins(self, demo):
        assert demo("", "title=a", "title=b").title == "b"

    def test_the_tree_they_start_from_is_not_changed(self):
        tree = {"training": {"sizes": [1]}}
        changed, _ = apply_overrides(tree, Place(Demo), ["training.sizes.0=2"])
        assert (changed, tree) == ({"training": {"sizes": [2]}}, {"training": {"sizes": [1]}})

    def test_they_reach_into_defaults(self, demo):
        budget = demo("", "budget.tiers.high.top_k=8", "budget.order.1.top_k=9").budget
        assert budget.tiers == {"low": Tier(top_k=1), "high": Tier(top_k=8, device="gpu")}
        assert budget.order == (Tier(top_k=2), Tier(top_k=9))

    def test_they_reach_into_lists_of_the_file(self, demo):
        assert demo("training: {sizes: [7, 8]}", "training.sizes.0=5").training.sizes == (5, 8)

    def test_they_name_a_member_of_a_union(self, demo):
        assert demo("", "aggregation.name=fedavg").aggregation == FedAvg()
        named = demo("", "aggregation.name=fedavg", "aggregation.momentum=1")
        assert named.aggregation == FedAvg(momentum=1.0)

    def test_keys_left_over_from_another_member_are_reported(self, faults):
        text = "aggregation: {name: flame, temperature: 2.0}"
        assert faults(text, "aggregation.name=fedavg") == [
            "aggregation.temperature: unknown key; 'flame' has it, 'fedavg' has not"
        ]

    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("title", "title: not an override; expected key=value"),
            ("=3", "=3: an empty key; expected section.key=value"),
            ("training..epochs=3", "training..epochs=3: an empty key; expected section.key=value"),
            ("title.a.b=3", "title.a.b: title is 'demo', which holds no keys"),
            ("training.epochs.x=3", "training.epochs.x: training.epochs is 2, which holds no keys"),
            (
                "training.sizes.9=3",
                "training.sizes.9: no item '9' in a list of 3; items count from 0",
            ),
            (
                "training.sizes.x=3",
                "training.sizes.x: no item 'x' in a list of 3; items count from 0",
            ),
        ],
    )
    def test_a_wrong_one_is_a_fault(self, faults, override, line):
        text = "training: {epochs: 2}"
        assert faults(text, override) == [line]

    def test_a_broken_value_is_a_fault_at_its_key(self, faults):
        [line] = faults("", "training.sizes=[1, 2")
        assert line.startswith("training.sizes: broken YAML: ")


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "no",
        "1e-4",
        "1e5",
        "1:30",
        "~",
        "",
        "010",
        "0o7",
        "true",
        ".5",
        "2024-01-01",
        "<<",
        "= ",
        "a\x85",
        "\u2028b",
    ]
)
tiers = st.builds(Tier, top_k=st.integers(1, 99), device=texts)
flames = st.builds(Flame, temperature=finite.filter(lambda t: t > 0), floor=st.integers())
demos = st.builds(
    Demo,
    title=texts,
    training=st.builds(Training, clip=finite, tokens=st.integers(0) | st.just("all")),
    budget=st.builds(
        Budget,
        tiers=st.dictionaries(texts, tiers, max_size=3),
        by_rank=st.dictionaries(st.integers(), finite, max_size=3),
    ),
    aggregation=flames | st.builds(FedAvg, momentum=finite),
    second=st.none() | flames,
)


@given(demos)
def test_the_yaml_of_a_config_loads_as_the_same_config(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_bytes(to_yaml(config).encode())
    assert load(Demo, path) == config
