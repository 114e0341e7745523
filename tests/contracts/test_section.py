"""Promises of a section and of an error, before any file is read."""

import dataclasses
import pickle
from typing import Annotated, Literal

import pydantic
import pytest
from pydantic import Field

from fedmoe.config.load import json_schema
from fedmoe.errors import ConfigError, Fault, FedMoEError
from fedmoe.section import section


@section
class FedAvg:
    """Weighted mean."""

    name: Literal["fedavg"] = "fedavg"
    momentum: float = 0.0


@section
class Flame:
    """Weighted by activation."""

    name: Literal["flame"] = "flame"
    temperature: float = 1.0
    """The sharpness of the weights' differences."""


@section
class Training:
    learning_rate: float = 1e-3
    epochs: Annotated[int, Field(ge=1)] = 1
    shuffle: bool = True
    aggregation: Annotated[FedAvg | Flame, Field(discriminator="name")] = Flame()


class TestSection:
    def test_it_is_frozen_and_keyword_only(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Training().epochs = 3  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(pydantic.ValidationError):
            Training(3)  # pyright: ignore[reportCallIssue]

    @pytest.mark.parametrize(
        "values",
        [{"epochs": "8"}, {"epochs": True}, {"epochs": 1.0}, {"shuffle": 1}, {"nope": 1}]
        + [{"learning_rate": bad} for bad in (float("nan"), float("inf"), True, "1")],
    )
    def test_it_refuses_values_of_another_type(self, values):
        with pytest.raises(pydantic.ValidationError):
            Training(**values)

    def test_an_integer_serves_as_a_float(self):
        assert Training(learning_rate=1).learning_rate == 1.0

    def test_replacing_a_value_checks_it(self):
        with pytest.raises(pydantic.ValidationError):
            dataclasses.replace(Training(), epochs=0)


class TestErrors:
    def test_a_fault_without_a_path_speaks_of_the_whole_file(self):
        assert str(ConfigError("a.yaml", [Fault("", "no such file"), Fault("x", "bad")])) == (
            "a.yaml: 2 fault(s)\n  no such file\n  x: bad"
        )

    def test_it_survives_the_way_out_of_a_worker_process(self):
        error = ConfigError("a.yaml", [Fault("x", "bad")])
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.where, again.faults) == (str(error), "a.yaml", error.faults)

    def test_it_is_the_users_mistake(self):
        assert issubclass(ConfigError, FedMoEError)
        assert FedMoEError.exit_code == 2


class TestSchema:
    def test_the_docstring_under_a_field_is_its_help(self):
        flame = json_schema(Training)["$defs"]["Flame"]
        assert flame["properties"]["temperature"]["description"] == (
            "The sharpness of the weights' differences."
        )
        assert flame["description"] == "Weighted by activation."

    def test_it_is_closed_and_lists_every_member(self):
        schema = json_schema(Training)
        assert schema["additionalProperties"] is False
        members = schema["properties"]["aggregation"]["anyOf"]
        assert [m["$ref"] for m in members] == ["#/$defs/FedAvg", "#/$defs/Flame"]
