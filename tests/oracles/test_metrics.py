"""Metrics against slow versions that a reader can check, and multiple choice option by option."""

import json
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedmoe.config import Experiment
from fedmoe.data import Example, Memory
from fedmoe.data.conversations import exchange, packed
from fedmoe.data.options import read_options
from fedmoe.data.text import TextSettings
from fedmoe.errors import DataError, FedMoEError
from fedmoe.evaluation.evaluate import Measured
from fedmoe.evaluation.likelihoods import Choice, Likelihood, Loss
from fedmoe.evaluation.metrics import Chosen
from fedmoe.evaluation.overlap import ExactMatch, RougeL, TokenF1
from fedmoe.evaluation.tool_calls import ToolCalls
from fedmoe.models.build import MINI, model_folder
from fedmoe.runs.evaluation_sets import Drawing

WORDS = st.lists(st.sampled_from(["the", "An", "cat", "Cat,", "sat", "mat.", "a", "7"]), max_size=6)


def slow_f1(response, answer):
    """Words are crossed out one by one."""

    def words(text):
        plain = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in plain.split() if word not in ("a", "an", "the")]

    wanted, found = words(response), words(answer)
    if not wanted or not found:
        return float(wanted == found)
    left, common = list(wanted), 0
    for word in found:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def slow_rouge_l(response, answer):
    """All common subsequences are tried."""

    def words(text):
        return "".join(
            c if c in string.ascii_lowercase + "7" else " " for c in text.lower()
        ).split()

    def longest(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + longest(a[1:], b[1:])
        return max(longest(a[1:], b), longest(a, b[1:]))

    wanted, found = words(response), words(answer)
    common = longest(wanted, found)
    return 2 * common / (len(wanted) + len(found)) if common else 0.0


@given(WORDS, WORDS)
def test_token_f1_is_the_slow_one(response, answer):
    response, answer = " ".join(response), " ".join(answer)
    assert TokenF1()(Example("", response, ""), answer) == pytest.approx(slow_f1(response, answer))


@settings(max_examples=40)
@given(WORDS, WORDS)
def test_rouge_l_is_the_slow_one(response, answer):
    pytest.importorskip("rouge_score")
    response, answer = " ".join(response), " ".join(answer)
    expected = slow_rouge_l(response, answer)
    assert RougeL()(Example("", response, ""), answer) == pytest.approx(expected)


def light(on, room="hall", **more):
    return {"name": "light", "arguments": {"on": on, "room": room, **more}}


def calling(*calls):
    """An example whose last message makes calls."""
    messages = [{"role": "user", "content": "switch"}]
    called = [{"type": "function", "function": call} for call in calls]
    messages.append({"role": "assistant", "content": "", "tool_calls": called})
    return Example(*exchange(messages), "", conversation=packed(messages))


def tagged(*calls):
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


OFF = {"name": "off", "arguments": {}}
TURNED = {"arguments": {"room": "hall", "on": True}, "name": "light"}
FORMS = [
    tagged(light(True)),
    "I will.\n" + tagged(TURNED),
    json.dumps(light(True)),
    json.dumps([light(True)]),
    json.dumps({"function": TURNED}),
    json.dumps({"name": "light", "parameters": light(True)["arguments"]}),
    json.dumps({"name": "light", "arguments": json.dumps(light(True)["arguments"])}),
    json.dumps({"tool_calls": [{"type": "function", "function": TURNED}]}),
    "[TOOL_CALLS] " + json.dumps([light(True)]),
    "<|python_tag|>" + json.dumps(light(True)),
    f"```json\n{json.dumps(light(True))}\n```",
]
WRONG = [
    "",
    "It is on.",
    tagged(light(1)),  # no truth
    tagged(light("true")),
    tagged(light(False)),
    tagged(light(True, level=3)),
    tagged({"name": "Light", "arguments": light(True)["arguments"]}),
    tagged(light(True), light(True)),
    tagged(light(True), OFF),
    tagged(light(True))[:-25],
    "<tool_call>" + "[" * 10**5,
    "null",
    '{"on": true}',
]


@pytest.mark.parametrize("answer", FORMS)
def test_a_call_is_right_in_every_form(answer):
    assert ToolCalls()(calling(light(True)), answer) == 1
    assert ToolCalls()(Example("switch", answer, ""), tagged(light(True))) == 1


@pytest.mark.parametrize("answer", WRONG)
def test_another_call_is_wrong(answer):
    assert ToolCalls()(calling(light(True)), answer) == 0


def test_the_order_of_calls_is_an_argument():
    example, turned = calling(light(True), OFF), tagged(OFF, light(True))
    assert ToolCalls()(example, turned) == 1
    assert ToolCalls(order="same")(example, turned) == 0
    assert ToolCalls(order="same")(example, tagged(light(True), OFF)) == 1


def test_numbers_are_compared_as_values_and_no_call_is_right_where_none_is_due():
    assert ToolCalls()(calling(light(1, level=2.0)), tagged(light(1.0, level=2))) == 1
    assert ToolCalls()(Example("hi", "ho", ""), "hello") == 1
    assert ToolCalls()(Example("hi", "ho", ""), tagged(OFF)) == 0


def asked(n):
    options = [f"red {n}", "a blue lamp in the hall", "green"]
    extra, right = read_options(options, "options", n % 3)
    return Example(f"what colour is {n}?", options[right], "", extra=extra)


ASKED = tuple(map(asked, range(12)))


@pytest.fixture(scope="module")
def measured(tiny_model):
    """A function that measures metrics on multiple-choice rows."""
    model = tiny_model(vocab_size=4096)
    model.set_budget(2, torch.ones(2))
    tokenizer = AutoTokenizer.from_pretrained(model_folder(MINI))
    rows = [(f"say {n}", "so") for n in range(6)]
    experiment = Experiment(data=Memory(rows=rows), text=TextSettings(template="plain"))
    drawing = Drawing(experiment, tokenizer, "causal")

    def make(*metrics, examples=ASKED):
        drawn = drawing.draw("test", examples, 100)
        data = drawing.scored("test", drawn, Chosen.of(metrics, experiment.data))
        return Measured(model, tokenizer, data, 5)

    return make


@torch.no_grad()
def slow_log_likelihood(found, prompt, option):
    """The sum of log-probabilities of an option's tokens and its end, one row by itself."""
    tokenizer = found.tokenizer
    before = tokenizer([f"Q: {prompt}\nA:"], add_special_tokens=False)["input_ids"][0]
    after = tokenizer([f" {option}"], add_special_tokens=False)["input_ids"][0]
    after = [*after, tokenizer.eos_token_id]
    logits = found.model.model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(after) - 1)
    return sum(float(logits[p, t]) for p, t in zip(places, after, strict=True)), len(after)


@pytest.mark.parametrize("normalise", ["none", "tokens", "characters"])
def test_choice_is_the_loop_over_options(measured, normalise):
    found = measured(Choice(normalise=normalise))
    expected = []
    for example in ASKED:
        values = []
        for option in json.loads(example.extra)["options"]:
            total, tokens = slow_log_likelihood(found, example.prompt, option)
            values.append(
                total / {"none": 1, "tokens": tokens, "characters": len(option)}[normalise]
            )
        best = json.loads(example.extra)["options"][values.index(max(values))]
        expected.append(float(best == example.response))
    assert found.scores["choice"] == expected
    assert 0 < sum(expected) < 12


def test_loss_gives_no_score_and_likelihood_its_exponent(measured):
    found = measured(Loss(), Likelihood())
    sums = found.sums()
    assert sums.means["score"] != sums.means["score"]  # NaN
    total, tokens = slow_log_likelihood(found, asked(0).prompt, asked(0).response)
    first = found.scores["likelihood"][0]
    assert first == pytest.approx(torch.tensor(total / tokens).exp().item(), rel=1e-4)
    assert "answers" not in vars(found)  # none is generated


def test_one_generation_serves_all_metrics(measured, monkeypatch):
    counted = []
    from fedmoe.evaluation import evaluate

    def counting(*given, real=evaluate.answer_all):
        counted.append(given)
        return real(*given)

    monkeypatch.setattr(evaluate, "answer_all", counting)
    found = measured(TokenF1(), ExactMatch(), lambda example, answer: 0.5)
    assert [*found.sums().metrics] == ["exact_match", "lambda"]
    assert len(counted) == 1


def test_rows_without_what_a_metric_needs_are_refused(measured):
    with pytest.raises(DataError, match=r"has no options; see data\.options"):
        measured(Choice(), examples=(Example("hi", "ho", ""),))
    with pytest.raises(FedMoEError, match="finds no call in any response"):
        measured(ToolCalls(), examples=(Example("hi", "ho", ""),))


def test_answers_that_call_nothing_are_counted_where_calls_are_scored():
    call = '<tool_call>{"name": "light", "arguments": {}}</tool_call>'
    examples = [Example("on", call, ""), Example("hi", "hello", ""), Example("ho", "hello", "")]
    said = ToolCalls().remark(examples)
    assert said == "tool_calls: 2 of 3 responses call nothing, and no call scores 1"
    assert not ToolCalls().remark(examples[:1])
