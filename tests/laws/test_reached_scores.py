"""A right answer scores 1, or it is said that it cannot: by every metric, tokenizer and wording."""

import json
import warnings

import pytest
from pydantic import ValidationError
from tokenizers import normalizers
from transformers import AutoTokenizer

from fedmoe.config import Experiment
from fedmoe.data import Example, HomeAssistant, Memory, ReasoningGym
from fedmoe.data.conversations import exchange, packed
from fedmoe.data.decoded import answer_text, ends_of
from fedmoe.data.federated import Federated, LocalData
from fedmoe.data.text import TextSettings
from fedmoe.errors import DataError, FedMoEWarning
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.evaluation.metrics import Chosen, of_rows
from fedmoe.evaluation.overlap import ExactMatch, RougeL, TokenF1
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.evaluation.tool_calls import ToolCalls
from fedmoe.models.build import MINI, model_folder
from fedmoe.runs.data import pooled_data
from fedmoe.runs.evaluation_sets import Drawing
from fedmoe.runs.own_account import read_account
from fedmoe.runs.own_data import OwnData
from tests.support.chat_templates import CHATML, HARMONY, INST, MARKED, THINKING, tokenizer

QWEN = CHATML.replace(
    "'<call>' + call.function | tojson",
    "'\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>'",
)
ODD = [
    "café",
    "cafe\u0301",
    "  x = 1\n  y",
    "ﬁne",
    "日本語",
    "the",
    "I'm  here .",
    "naïve\u00a0!",
    "🙂",
]
LONG = " ".join(f"word{n}" for n in range(60))


def plain():
    return AutoTokenizer.from_pretrained(model_folder(MINI))


def composing():
    made = plain()
    made.backend_tokenizer.normalizer = normalizers.NFC()
    return made


def special():
    made = plain()
    made.add_special_tokens({"additional_special_tokens": ["here", "word7"]})
    return made


TOKENIZERS = {"plain": plain, "composing": composing, "special": special}
TOKENIZERS |= {
    name: lambda template=template: tokenizer(template)
    for name, template in (("chatml", CHATML), ("inst", INST), ("harmony", HARMONY))
}
TOKENIZERS |= {"marked": lambda: tokenizer(MARKED), "thinking": lambda: tokenizer(THINKING)}


def drawing(made, *, metric=None, limit=None, data=None, wording="plain", warns=True):
    experiment = Experiment(
        data=data or Memory(rows=[("a", "b")]),
        text=TextSettings(template=wording, control_tokens="allow"),
        evaluation=EvaluationSettings(metric=metric, max_new_tokens=limit),
    )
    return Drawing(experiment, made, "causal", warns)


def scored(made, examples, *metrics, **settings) -> EvaluationSet:
    drawn = drawing(made, **settings)
    chosen = Chosen.of(metrics, drawn.experiment.data)
    return drawn.scored("test", drawn.draw("test", examples, 400), chosen)


def own_answers(made, data):
    """The responses' own ids, decoded as a model's answers are."""
    ends = ends_of(data.rows, made)
    for row in data.rows:
        padding = [made.pad_token_id or made.eos_token_id] * 3
        yield answer_text(made, [*row.ids[row.prompt_length :], *padding], ends)


@pytest.mark.parametrize("wording", ["plain", "chat"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_ids_of_a_response_score_1(name, wording):
    made = TOKENIZERS[name]()
    examples = tuple(Example(f"say {n}", text, "") for n, text in enumerate(ODD))
    metrics = (ExactMatch(), TokenF1())
    data = scored(made, examples, *metrics, wording=wording)
    assert (data.unreachable, data.notes) == (0, ())
    for example, answer in zip(data.examples, own_answers(made, data), strict=True):
        assert [metric(example, answer) for metric in metrics] == [1, 1]


def test_a_control_token_that_is_missing_makes_an_answer_wrong():
    made = special()
    data = scored(made, (Example("say", "lamp here", ""),), ExactMatch())
    assert ExactMatch()(data.examples[0], "lamp here") == 1
    assert ExactMatch()(data.examples[0], "lamp") == 0


def test_each_turn_with_a_call_scores_1_given_what_was_before():
    call = {"type": "function", "function": {"name": "on", "arguments": {"room": "hall"}}}
    messages = [
        {"role": "user", "content": "light"},
        {"role": "assistant", "content": "I will.", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "It is on."},
    ]
    whole, calls = (
        Example(*exchange(part), "", conversation=packed(part)) for part in (messages, messages[:2])
    )
    made = tokenizer(QWEN)
    data = scored(made, (whole,), ToolCalls(), ExactMatch(), wording="chat")
    first, second = own_answers(made, data)
    assert ["<tool_call>" in text for text in (first, second)] == [True, False]
    metric = ToolCalls()
    judged = [[metric(e, a) for a in (first, second)] for e in data.examples]
    assert judged == [[1, 0], [0, 1]]
    with pytest.raises(DataError, match=r"1 of 1 test .* by tool_calls: it gives 0 for the resp"):
        scored(tokenizer(CHATML), (calls,), metric, wording="chat")


def test_some_that_cannot_be_reached_are_a_warning_and_all_an_error():
    pytest.importorskip("rouge_score")
    some = tuple(Example(f"say {n}", text, "") for n, text in enumerate(("日本語", "yes", "no")))
    with pytest.warns(FedMoEWarning, match="1 of 3 test responses cannot score 1 by rouge_l: it"):
        data = scored(plain(), some, RougeL())
    assert data.unreachable == 1
    assert data.notes[0].startswith("warning: 1 of 3 test responses cannot score 1 by rouge_l")
    with pytest.raises(
        DataError, match="1 of 1 test responses cannot score 1 by rouge_l: it gives"
    ):
        scored(plain(), some[:1], RougeL())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a function of one's own may never give 1
        assert scored(plain(), some, lambda example, answer: 0.25).unreachable == 3


def test_answers_are_as_long_as_the_longest_response():
    made, rows = plain(), (Example("short", "yes", ""), Example("long", LONG, ""))
    longest = max(row.num_targets for row in scored(made, rows, ExactMatch()).rows)
    free = scored(made, rows, ExactMatch())
    assert longest <= free.max_new_tokens < longest + 8
    assert (free.notes, free.unreachable) == ((), 0)
    # The end token is not needed for an answer to be complete.
    assert scored(made, rows, ExactMatch(), limit=longest - 1).unreachable == 0
    cut = scored(made, rows, ExactMatch(), limit=longest - 2)
    assert (cut.max_new_tokens, cut.unreachable) == (longest - 2, 1)
    assert "1 of 2 test responses are longer than evaluation.max_new_tokens = " in cut.notes[0]
    assert f"(the longest has {longest} tokens)" in cut.notes[0]


def test_a_limit_that_no_metric_needs_is_said():
    from fedmoe.evaluation.likelihoods import Likelihood

    (note,) = scored(plain(), (Example("a", "b", ""),), Likelihood(), limit=1).notes
    assert note.startswith("evaluation.max_new_tokens is without effect")


@pytest.mark.parametrize(
    ("responses", "lengths", "names"),
    [
        (["on", "off", "dim"], [2, 2, 2], ("exact_match",)),
        ([LONG, LONG + "!", "x" * 99], [80, 81, 60], ("likelihood",)),
        ([LONG, LONG, "other"], [80, 80, 60], ("exact_match",)),
    ],
)
def test_the_metric_follows_the_responses(responses, lengths, names):
    examples = [Example(str(n), text, "") for n, text in enumerate(responses)]
    chosen = of_rows(None, Memory(rows=[("a", "b")]), examples, lengths)
    assert chosen.names == names
    assert f"have {sorted(lengths)[1]} tokens or fewer" in chosen.note()
    assert "(evaluation.metric)" in chosen.note()
    assert of_rows(TokenF1(), HomeAssistant(), examples, lengths).note() == "scored by token_f1"


def test_a_verifier_comes_first():
    chosen = of_rows(None, ReasoningGym(), [Example("a", "b", "")], [2])
    assert chosen.names == ("verifier", "exact_match")
    with pytest.raises(ValidationError, match="'home_assistant' has no verifier of its own"):
        Experiment(evaluation=EvaluationSettings(metric="verifier"))


def test_the_built_in_data_are_scored_by_exact_match():
    data = pooled_data(Experiment(data=HomeAssistant(per_template=2)), plain(), "causal")
    assert data.facts().metrics == ("exact_match",)
    assert (
        data.facts().account()[-1].startswith("scored by exact_match: half of the responses have 1")
    )


def test_owners_count_what_cannot_be_reached_and_tell_no_text(tmp_path):
    rows = [{"prompt": f"say {n}", "response": LONG if n % 2 else f"{n}"} for n in range(40)]
    (tmp_path / "attic.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Federated(path=str(tmp_path))
    experiment = Experiment(
        data=data, evaluation=EvaluationSettings(metric="exact_match", max_new_tokens=20)
    )
    every = OwnData(LocalData(data), experiment, plain(), "causal")
    assert "client attic: " in read_account(every).warnings()[-1]
    own = every.of("attic")
    held_out = [e for of in own.sets.values() for e in of.examples]
    assert own.counts.unreachable == sum(e.response == LONG for e in held_out) > 0
    said = own.counts.warning("client attic")
    assert f"{own.counts.unreachable} held-out answers of client attic cannot score 1" in said
    assert "word1" not in said
    assert own.counts.checked(own.counts.as_json()) == own.counts


def test_multiple_choice_rows_are_read_in_their_usual_forms():
    texts = ["red", "blue"]
    data = {"text": texts, "label": ["1", "2"]}
    for value, right in [(texts, "blue"), (texts, "B"), (texts, 1), (json.dumps(texts), " blue ")]:
        rows = [
            {"question": "which?", "choices": value, "answer": right, "n": str(n)} for n in "ab"
        ]
        memory = Memory(rows=rows, prompt="{question} {n}", options="choices", test_share=0.5)
        assert {e.response for e in memory.load(0).train} == {"blue"}
    arc = [{"question": "which?", "choices": data, "answer": "2"}]
    assert Memory(rows=arc, options="choices").load(0).train[0].response == "blue"
    for wrong in ("green", "C", 2, -1, True, None):
        bad = [{"question": "which?", "choices": texts, "answer": wrong}]
        with pytest.raises(DataError, match="is none of the options in 'choices'"):
            Memory(rows=bad, options="choices").load(0)
    with pytest.raises(DataError, match="no column 'choice'; did you mean 'choices'"):
        Memory(rows=arc, options="choice").load(0)
