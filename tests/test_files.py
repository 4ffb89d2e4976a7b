"""Files are whole or not at all."""

import json

import pytest

from minillama4.files import write_json, written_whole


def test_the_new_file_takes_the_old_ones_place_only_when_all_went_well(tmp_path):
    file = tmp_path / "new" / "a.txt"
    with written_whole(file) as part:
        part.write_text("first")
        assert not file.exists()
    with pytest.raises(KeyboardInterrupt), written_whole(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "first"
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


def test_json_without_numbers_that_json_lacks(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"loss": 1.5, "name": "größer"})
    with pytest.raises(ValueError):
        write_json(file, {"loss": float("nan")})
    assert json.loads(file.read_text(encoding="utf-8")) == {"loss": 1.5, "name": "größer"}
    assert len(list(tmp_path.iterdir())) == 1
