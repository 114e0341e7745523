"""Messages about a wrong configuration: every fault, at its path, in plain words."""

from typing import Annotated

import pytest
from demo_config import FedAvg, Flame, Training
from pydantic import Field

from fedmoe.section import section


@section
class Needy:
    rounds: int
    rule: Annotated[FedAvg | Flame, Field(discriminator="name")]


class TestFaults:
    def test_all_faults_come_at_once_sorted_by_path(self, faults):
        text = """
            title: 1.0
            training: {epochs: 0, learning_rate: .nan, learning_rat: 3, shuffle: "true"}
            extra: {tokens: some}
            aggregation: {name: flame, temperature: -1}
            second: {name: activaton}
            budget: {order: [{top_k: "8"}], by_rank: {x: 1}}
        """
        assert faults(text, "pth=x", "nonsense") == [
            "aggregation.temperature: found -1, expected more than 0.0",
            "budget.by_rank.x: expected an integer as the key",
            "budget.order.0.top_k: found '8', expected an integer",
            "extra.tokens: found 'some', expected 'all' or an integer",
            "nonsense: not an override; expected key=value",
            "pth: unknown key; did you mean path?",
            "second.name: 'activaton' is not one of 'fedavg', 'flame'",
            "title: found 1.0, expected text; put it in quotes",
            "training.epochs: found 0, expected 1 or more",
            "training.learning_rat: unknown key; did you mean training.learning_rate?",
            "training.learning_rate: found NaN, expected a finite number",
            "training.shuffle: found 'true', expected true or false",
        ]

    def test_no_word_of_pydantic_reaches_the_user(self, faults):
        text = "training: 3\naggregation: fedavg\nbudget: {tiers: [1], order: 4}\nsecond: {}"
        assert faults(text) == [
            "aggregation: found 'fedavg', expected a mapping with a name among 'fedavg', 'flame'",
            "budget.order: found 4, expected a list",
            "budget.tiers: found [1], expected a mapping",
            "second.name: missing; expected one of 'fedavg', 'flame'",
            "training: found 3, expected a mapping",
        ]

    def test_a_union_name_close_to_another_is_suggested(self, faults):
        assert faults("", "aggregation.name=flam") == [
            "aggregation.name: 'flam' is not one of 'fedavg', 'flame'; did you mean 'flame'?"
        ]

    def test_a_literal_close_to_another_is_suggested(self, faults):
        assert faults("", "training.dtype=bfloat") == [
            "training.dtype: 'bfloat' is not one of 'float32', 'bfloat16'; did you mean 'bfloat16'?"
        ]

    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("training.epoch=1", "training.epoch: unknown key; did you mean training.epochs?"),
            ("lr=1", "lr: unknown key; did you mean training.learning_rate?"),
            ("epochs=1", "epochs: unknown key; did you mean training.epochs?"),
            ("budget.flor=1", "budget.flor: unknown key; did you mean aggregation.floor?"),
            ("floor=1", "floor: unknown key; did you mean aggregation.floor?"),
            ("tokes=1", "tokes: unknown key; did you mean training.tokens?"),
            ("rate=1", "rate: unknown key"),
            ("second.momentun=1", "second.name: missing; expected one of 'fedavg', 'flame'"),
            (
                "budget.order.0.topk=1",
                "budget.order.0.topk: unknown key; did you mean budget.order.0.top_k?",
            ),
            (
                "aggregation.warmup.momentm=1",
                "aggregation.warmup.momentm: unknown key; "
                "did you mean aggregation.warmup.momentum?",
            ),
        ],
    )
    def test_an_unknown_key_suggests_the_closest_path(self, faults, override, line):
        assert faults("", override) == [line]

    def test_what_a_section_refuses_is_reported_at_its_path(self, faults):
        message = "seven epochs are unlucky; choose another number"
        assert faults("training: {epochs: 7}\nextra: {epochs: 7}") == [
            f"extra: {message}",
            f"training: {message}",
        ]
        assert faults("epochs: 7", cls=Training) == [message]

    def test_a_missing_key_says_what_belongs_there(self, faults):
        assert faults("{}", cls=Needy) == [
            "rounds: missing; expected an integer",
            "rule: missing; expected a mapping with a name among 'fedavg', 'flame'",
        ]

    @pytest.mark.parametrize("text", ["true", "'8'", "1.5", "null"])
    def test_only_integers_are_integers(self, faults, text):
        [line] = faults(f"training: {{epochs: {text}}}")
        assert line.endswith("expected an integer")

    def test_infinity_is_refused(self, faults):
        assert faults("training: {learning_rate: -.inf}") == [
            "training.learning_rate: found -Infinity, expected a finite number"
        ]

    def test_a_long_value_is_cut_short(self, faults):
        [line] = faults(f"training: {{epochs: {'x' * 500}}}")
        assert line == f"training.epochs: found '{'x' * 56}..., expected an integer"

    def test_of_a_union_the_alternative_of_the_right_type_speaks(self, faults):
        assert faults("training: {tokens: -1}") == ["training.tokens: found -1, expected 0 or more"]

    def test_a_fault_inside_one_alternative_is_told_of_them_all(self, faults):
        assert faults("training: {widths: [1, x]}") == [
            'training.widths: found [1, "x"], expected an integer or a list'
        ]

    def test_a_value_beyond_a_bound_says_the_bound(self, faults):
        assert faults("training: {epochs: 10}") == ["training.epochs: found 10, expected 9 or less"]
