from pathlib import Path

import pytest

from coralline.errors import UserError, read_text


def test_read_text_names_the_file_and_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope\.json: no such file; give the path of a plan"):
        read_text(tmp_path / "nope.json", "a plan")
    with pytest.raises(UserError, match="is a directory"):
        read_text(tmp_path, "a plan")
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text"):
        read_text(binary, "a plan")
