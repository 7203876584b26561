"""Every common file of questions and answers reads alike; what is wrong is said with file, line or item."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kt.errors import InputError, OutputError
from kt.items import read_items
from kt.records import atomic_file, file_hash, follow, input_hashes, json_list_writer, read_jsonl, write_jsonl

ROWS: dict[str, list[Any]] = {
    "alpaca": [{"instruction": "Q?", "input": "", "output": "An answer."}],
    "ranking": [{"instruction": "Q?", "input": "", "output": ["An answer.", "worse"]}],
    "qa": [{"question": "Q?", "answer": "An answer."}],
    "trl": [{"prompt": "Q?", "completion": "An answer."}],
    "trl conversational": [
        {"prompt": [{"role": "user", "content": "Q?"}], "completion": [{"role": "assistant", "content": "An answer."}]}
    ],
    "trl pairs": [{"prompt": "Q?", "chosen": "An answer.", "rejected": "no"}],
    "chat": [{"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "An answer."}]}],
    "chat with system": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Q?"},
                {"role": "assistant", "content": "An answer."},
            ]
        }
    ],
}


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("lines", [False, True])
def test_formats_in_the_wild(shape: str, lines: bool, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("\n".join(map(json.dumps, ROWS[shape])) if lines else json.dumps(ROWS[shape], indent=1))
    (read,) = read_items([path])
    assert read.item is not None
    assert (read.item["question"], read.item["answer"]) == ("Q?", "An answer.")


def test_input_is_part_of_the_question(tmp_path: Path) -> None:
    (tmp_path / "d").write_text(json.dumps([{"instruction": "Sum up.", "input": "A text.", "output": "It is short."}]))
    assert [r.item["question"] for r in read_items([tmp_path / "d"]) if r.item] == ["Sum up.\nA text."]


def test_byte_order_mark_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\ufeff" + json.dumps(ROWS["qa"])
    (tmp_path / "d").write_text(text)
    assert len(list(read_items([tmp_path / "d"]))) == 1
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    (read,) = read_items(["-"])
    assert read.where == "<stdin> item 1"


def test_ids_follow_content(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}?", "answer": "Yes, it is."} for i in range(5)]
    names = []
    for order in (rows, rows[::-1], [*rows[:2], {"question": "new?", "answer": "x"}, *rows[2:]]):
        (tmp_path / "d").write_text(json.dumps(order))
        names.append({r.item["question"]: r.item["id"] for r in read_items([tmp_path / "d"]) if r.item})
    assert names[0] == names[1]
    assert names[0].items() <= names[2].items()


def test_repeats_are_kept_and_numbered(tmp_path: Path) -> None:
    (tmp_path / "d").write_text(json.dumps(ROWS["qa"] * 3))
    first, second, third = (r.item["id"] for r in read_items([tmp_path / "d", tmp_path / "d"], limit=3) if r.item)
    assert (second, third) == (f"{first}-2", f"{first}-3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("[]", "holds no items"),
        ("hello", ":1: not JSON"),
        ('[{"question": "a", "answer": "b"},\n{"question": }]', ":2: not JSON"),
        ('{"question": "a", "answer": "b"}\n{"question"', ":2: not JSON"),
        ('[{"question": "a", "answer": "b"}', "not JSON"),
        ('[{"text": "a", "label": 1}]', "columns text, label; expected"),
        ('["a"]', "item 1: a str, not a record"),
        ('[{"id": 1, "question": "a", "answer": "b"}, {"id": 1, "question": "c", "answer": "d"}]', "item 2: the id '1'"),
        ("[" * 100_000, "item 1: a list, not a record"),
        (
            '[{"question": "a", "answer": "b"}, {"id": 18446744073709551616, "question": "a", "answer": "b"}]',
            "item 2: a number",
        ),
        ('{"id": 18446744073709551616, "question": "a", "answer": "b"}', "an id that is a float"),
        ('{"id": ["a"], "question": "a", "answer": "b"}', "an id that is a list"),
        (b'[{"question": "\xff\xfe", "answer": "b"}]', "UTF-8"),
        (b'{"question": "a\x00", "answer": "b"}', ":1: not JSON"),
    ],
)
def test_a_bad_file_is_an_error_that_says_where(text: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words) as caught:
        list(read_items([path]))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "a", "answer": ""}, "empty answer"),
        ({"question": "a", "answer": None}, "no single answer"),
        ({"question": " ", "answer": "b"}, "empty question"),
        ({"question": "a", "answer": "b\0c"}, "NUL byte in the answer"),
        ({"question": "a", "answer": "x" * 1_000_000}, "1000000 characters"),
        ({"question": "a", "answer": 5}, "no single answer"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no single question"),
    ],
)
def test_an_unusable_item_is_a_reject_with_its_reason(row: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "d").write_text(json.dumps([row, *ROWS["qa"]]))
    bad, good = read_items([tmp_path / "d"])
    assert bad.item is None
    assert bad.raw == row
    assert reason in bad.reason
    assert good.item


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            list(read_items([path]))


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(ZeroDivisionError), atomic_file(path) as stream:
        stream.write(b"half")
        _ = 1 / 0
    assert list(read_jsonl(path)) == [{"a": 1}]
    assert os.listdir(tmp_path) == ["out.jsonl"]
    with json_list_writer(tmp_path / "empty.json"):
        pass
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_an_unwritable_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_jsonl(tmp_path / "file" / "x.jsonl", [{}])


def test_two_inputs_of_one_name_are_two_inputs(tmp_path: Path) -> None:
    places = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "qa.json").write_text(folder)
        places.append(str(tmp_path / folder / "qa.json"))
    hashes = input_hashes([*places, "-"])
    assert hashes == {"qa.json": file_hash(places[0]), "qa.json-2": file_hash(places[1])}
    assert len(set(hashes.values())) == 2


def test_files_are_read_side_by_side() -> None:
    first = [{"id": i} for i in "abcd"]
    found = list(follow(first, [{"id": "b", "x": 1}, {"id": "d", "x": 2}], []))
    assert [(a["id"], b and b["x"], c) for a, b, c in found] == [
        ("a", None, None),
        ("b", 1, None),
        ("c", None, None),
        ("d", 2, None),
    ]
