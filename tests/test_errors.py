from pathlib import Path

import pytest

from coralline.errors import UserError, parse_json, read_text


def test_read_text_names_the_file_and_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope\.json: no such file; give the path of a plan"):
        read_text(tmp_path / "nope.json", "a plan")
    with pytest.raises(UserError, match="is a directory"):
        read_text(tmp_path, "a plan")
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text"):
        read_text(binary, "a plan")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1, column 1"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "thousands of digits"),
        ('"\\ud800"', "half a character"),
    ],
)
def test_parse_json_names_the_place(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^plan.json: .*{said}"):
        parse_json(text, "plan.json")


def test_parse_json_reads_what_is_valid() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00", "b": [1, 2.5]}', "x") == {"a": "😀", "b": [1, 2.5]}
