"""Small files: whole or absent, tables, hashes."""

import hashlib

from etcvla.files import hash_file, hash_json, read_csv, write_csv, write_json


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "table.csv"
    assert read_csv(path) == []
    write_csv(path, ("name", "value"), [("a,b", 1), ("c", "")])
    assert path.read_text() == 'name,value\n"a,b",1\nc,\n'
    assert read_csv(path) == [{"name": "a,b", "value": "1"}, {"name": "c", "value": ""}]
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_hashes(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, [1])
    assert hash_file(path) == hashlib.sha256(b"[\n  1\n]\n").hexdigest()
    assert hash_json({"a": (1,), "b": 2}) == hash_json({"b": 2, "a": [1]})
