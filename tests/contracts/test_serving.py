"""The endpoint as OpenAI's own client uses it, and as nobody should."""

import json
import random

import openai
import pytest
from endpoint import ASK, CHAT, JSON, MOST, asked, tiny_loaded

from fedmoe.data.text import TextSettings
from fedmoe.export.generate import Generator
from fedmoe.serving.request import ONLY, WITHOUT_EFFECT


@pytest.fixture(scope="module")
def loaded(tiny_model, random_adapter):
    return tiny_loaded(tiny_model, random_adapter)


def plain(loaded, level, top_k=None, most=MOST):
    """The greedy answer by the generator itself."""
    loaded.use(level, top_k)
    return Generator(loaded.model, loaded.tokenizer, loaded.text).answer(ASK[0]["content"], most)


async def streamed(chunks):
    """Text, the last reason to end, and the usage of a stream."""
    text, finish, usage = "", None, None
    async for chunk in chunks:
        usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish, usage


def test_a_client_talks_to_every_tier_streaming_or_not(loaded):
    expected = {name: plain(loaded, name) for name in loaded.levels}
    assert len({answer.text for answer in expected.values()}) == 3

    async def ask(client, _):
        assert [model.id for model in (await client.models.list()).data] == [*expected]
        for name in (*expected, *expected):
            whole = await client.chat.completions.create(model=name, messages=ASK)
            options = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = await client.chat.completions.create(model=name, messages=ASK, **options)
            text, finish, usage = await streamed(chunks)
            answer, (choice,) = expected[name], whole.choices
            assert choice.message.content == text == answer.text
            assert choice.finish_reason == finish == answer.finish
            assert whole.usage == usage
            found = usage.prompt_tokens, usage.completion_tokens
            assert found == (answer.prompt_tokens, answer.new_tokens)

    asked(loaded, ask)


def test_a_request_chooses_its_number_of_experts(loaded):
    expected = {k: plain(loaded, "high", k).text for k in (1, 2, 8)}
    assert len({*expected.values()}) == 3

    async def ask(client, _):
        for k, text in expected.items():
            found = await client.chat.completions.create(
                model="high", messages=ASK, extra_body={"top_k": k}
            )
            assert found.choices[0].message.content == text
            assert found.fedmoe["top_k"] == k
        with pytest.raises(openai.BadRequestError, match="expected 1 to 8 experts"):
            await client.chat.completions.create(
                model="high", messages=ASK, extra_body={"top_k": 9}
            )

    asked(loaded, ask)


def test_drawn_answers_follow_their_seed_and_stops_cut_them(loaded):
    async def ask(client, _):
        async def text(**fields):
            fields = {"model": "low", "messages": ASK, "temperature": 2.0} | fields
            return (await client.chat.completions.create(**fields)).choices[0].message.content

        assert await text(seed=1) == await text(seed=1)
        assert len({await text(seed=n) for n in range(4)}) > 1
        unseeded = await client.chat.completions.create(model="low", messages=ASK, temperature=2.0)
        again = await text(seed=unseeded.fedmoe["seed"])
        assert again == unseeded.choices[0].message.content
        greedy = await text(temperature=0)
        assert await text(top_p=1e-9) == greedy == plain(loaded, "low").text
        stop = greedy[4:7]
        assert await text(temperature=0, stop=[stop]) == greedy[: greedy.find(stop)]

    asked(loaded, ask)


def test_a_text_is_continued_as_it_is(loaded):
    ids = loaded.tokenizer(["Once upon"])["input_ids"][0]
    loaded.use("high")
    generator = Generator(loaded.model, loaded.tokenizer, loaded.text)
    expected = generator.answer(ids, MOST).text

    async def ask(client, _):
        for prompt in ("Once upon", ids):
            found = await client.completions.create(model="high", prompt=prompt)
            assert found.choices[0].text == expected
        chunks = await client.completions.create(model="high", prompt=ids, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in chunks]) == expected

    asked(loaded, ask)


TOOL = {"type": "function", "function": {"name": "turn_on", "parameters": {"type": "object"}}}


@pytest.fixture
def says(monkeypatch, loaded):
    """A function that makes the model say a text, and end."""

    def make(text):
        def said(model, prompt, most, pad, end, each, sampling):
            for token in [*loaded.tokenizer([text])["input_ids"][0], end[0]]:
                each(token)

        monkeypatch.setattr("fedmoe.export.generate.decode_each", said)

    return make


@pytest.mark.parametrize("calls", [True, False])
def test_calls_of_functions_are_read_and_text_stays_text(loaded, says, calls):
    call = '{"name": "turn_on", "arguments": {"room": "kitchen"}}'
    text = f"{call}\n{call}" if calls else f"{call[:20]} is what I would say."
    says(text)

    async def ask(client, _):
        fields = {"model": "high", "messages": ASK, "tools": [TOOL]}
        (choice,) = (await client.chat.completions.create(**fields)).choices
        (bare,) = (await client.chat.completions.create(model="high", messages=ASK)).choices
        parts = await client.chat.completions.create(**fields, stream=True)
        chunks = [chunk.choices[0] async for chunk in parts]
        listed = [c for chunk in chunks for c in chunk.delta.tool_calls or ()]
        assert bare.message.content == text
        assert not bare.message.tool_calls
        if calls:
            assert choice.finish_reason == chunks[-1].finish_reason == "tool_calls"
            assert choice.message.content is None
            for found in (choice.message.tool_calls, listed):
                assert [x.function.name for x in found] == ["turn_on"] * 2
                assert json.loads(found[1].function.arguments) == {"room": "kitchen"}
                assert found[0].id != found[1].id
            history = [*ASK, choice.message.model_dump(exclude_none=True)]
            history += [{"role": "tool", "tool_call_id": "call", "content": "done"}]
            await client.chat.completions.create(**(fields | {"messages": history}))
        else:
            assert choice.message.content == text
            assert "".join(chunk.delta.content or "" for chunk in chunks) == text
            assert not listed

    asked(loaded, ask)


def test_functions_are_refused_where_no_prompt_has_any(loaded, monkeypatch):
    monkeypatch.setattr(loaded, "text", TextSettings(template="plain"))

    async def ask(client, _):
        with pytest.raises(openai.BadRequestError, match=r"without function calls.*send no tools"):
            await client.chat.completions.create(model="high", messages=ASK, tools=[TOOL])
        await client.chat.completions.create(model="high", messages=ASK, max_tokens=1)

    asked(loaded, ask)


def test_an_answer_begins_without_the_space_before_its_first_word(loaded, says):
    says("  turned on ")

    async def ask(client, _):
        fields = {"model": "high", "messages": ASK}
        whole = await client.chat.completions.create(**fields)
        text, *_ = await streamed(await client.chat.completions.create(**fields, stream=True))
        assert whole.choices[0].message.content == text == "turned on"
        bare = await client.completions.create(model="high", prompt="It is")
        assert bare.choices[0].text == "  turned on "  # it continues the text

    asked(loaded, ask)


BAD = [
    {"model": "nobody"},
    {"model": "own"},
    {"messages": [{"role": "assistant", "content": "hi"}]},
    {"messages": [*ASK, {"role": "assistant", "content": "and"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": "a", "audio": {"id": "x"}}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"max_tokens": 0},
    {"max_tokens": MOST + 1},
    {"max_tokens": 2, "max_completion_tokens": 3},
    {"max_tokens": 10**5000},
    {"temperature": float("nan")},
    {"temperature": True},
    {"top_p": 0.5},
    {"top_k": 1.5},
    {"stop": [""]},
    {"stop": ["a"] * 5},
    {"stream_options": {"include_usage": True}},
    {"seed": 2**64},
    {"tools": [{"type": "function", "function": "f"}]},
    {"tools": [TOOL], "tool_choice": "required"},
    {"stream": "yes"},
    *({name: "other"} for name in ONLY),
    {"logprobs": 0},
    {"modalities": ["audio"]},
    {"prediction": {}},
]


def test_what_is_not_followed_is_refused_with_its_name(loaded):
    fine = {"model": "high", "messages": ASK, "max_tokens": 1}

    async def ask(client, http):
        for change in BAD:
            try:
                text = json.dumps(fine | change)
            except ValueError:  # an integer that Python does not write
                text = json.dumps(fine | {"max_tokens": 7}).replace("7", "7" * 5000)
            found = await http.post(CHAT, content=text, headers=JSON)
            error = found.json()["error"]
            assert found.status_code == (404 if "model" in change else 400), (change, error)
            assert error["message"]
            if len(change) == 1 and len(text) < 1000:
                assert error["param"] in change, (change, error)
        neutral = fine | dict(ONLY) | dict.fromkeys(WITHOUT_EFFECT, "x") | {"service": None}
        found = (await http.post(CHAT, json=neutral)).json()
        assert found["fedmoe"]["without_effect"] == [*WITHOUT_EFFECT]
        long = fine | {"messages": [{"role": "user", "content": "a b " * 400}]}
        error = (await http.post(CHAT, json=long)).json()["error"]
        assert error["code"] == "context_length_exceeded"

    asked(loaded, ask)


def test_strangers_other_pages_and_long_bodies_are_refused(loaded):
    async def ask(client, http):
        async def status(path="/v1/models", method="GET", **fields):
            found = await http.request(method, path, **fields)
            assert found.headers["content-type"] == "application/json"
            return found.status_code

        assert await status(headers={"Host": "localhost:1234"}) == 200
        assert await status(headers={"Host": "[::1]:1"}) == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil", "", "localhost@x"):
            assert await status(headers={"Host": host}) == 403
        page = {"Content-Type": "text/plain"}
        assert await status(CHAT, "POST", content="{}", headers=page) == 415
        assert await status(CHAT, "OPTIONS", headers=JSON) == 405
        assert await status(CHAT, "POST", content=b"x" * 2001, headers=JSON) == 413

        async def chunks():
            for _ in range(30):
                yield b"x" * 100

        assert await status(CHAT, "POST", content=chunks(), headers=JSON) == 413
        assert await status("/v1/files") == 404
        assert await status("/health") == 200

    asked(loaded, ask, body_bytes=2000)


def test_a_key_is_asked_for(loaded):
    async def ask(client, http):
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer sécret"}):
            given = {name: value.encode() for name, value in given.items()}
            assert (await http.get("/v1/models", headers=given)).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert (await http.get("/v1/models", headers=right)).status_code == 200
        assert (await http.get("/health")).status_code == 200

    asked(loaded, ask, key="secret")


def test_nonsense_is_refused_and_changes_nothing(loaded, capfd):
    before, chance = plain(loaded, "high").text, random.Random(0)
    odd = [
        None,
        True,
        0,
        -1,
        1.5,
        1e400,
        "",
        "x",
        "\x00",
        [],
        {},
        [[]],
        [None],
        {"a": []},
        "🦊",
        2**70,
    ]
    odd += [[{"role": "user"}], [{"role": "tool", "content": "x"}], [1, 2], ["a", "b"], [-1]]
    names = ["model", "messages", "prompt", "top_k", "max_tokens", "temperature", "top_p", "seed"]
    names += ["stop", "stream", "stream_options", "tools", "tool_choice", "n", "user", "x"]
    fine = {"model": "high", "messages": ASK, "max_tokens": 1}

    def body():
        made = dict(fine) if chance.random() < 0.8 else {}
        for name in chance.sample(names, chance.randrange(1, 4)):
            made[name] = chance.choice(odd)
        text = json.dumps(made).encode()
        cut = chance.randrange(len(text)) if chance.random() < 0.2 else len(text)
        return text[:cut] + (b"\xff" if chance.random() < 0.05 else b"")

    async def ask(client, http):
        seen = set()
        for _ in range(300):
            path = chance.choice([CHAT, "/v1/completions"])
            content = body()
            found = await http.post(path, content=content, headers=JSON)
            seen.add(found.status_code)
            assert found.status_code in (200, 400, 404), (content, found.text)
            if found.status_code != 200:
                assert found.json()["error"]["message"], content
        for deep in (b'{"a":' * 100_000, b'{"messages":' + b"[" * 100_000, b""):
            assert (await http.post(CHAT, content=deep, headers=JSON)).status_code == 400
        nested = [TOOL | {"x": json.loads("[" * 900 + "]" * 900)}]
        assert (await http.post(CHAT, json=fine | {"tools": nested})).status_code in (200, 400)
        assert seen == {200, 400, 404}
        after = await client.chat.completions.create(model="high", messages=ASK)
        assert after.choices[0].message.content == before

    asked(loaded, ask)
    assert "Traceback" not in capfd.readouterr().err
