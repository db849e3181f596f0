"""Tests of FAST against the numbers of the reference implementation, and of its round trip."""

import json

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.models.fast import FAST
from tests.golden_dir import golden

FOLDERS = golden("fast_tokenizer")


@pytest.fixture(params=FOLDERS, ids=lambda p: p.name)
def folder(request):
    return request.param


@pytest.fixture
def fixture(folder):
    tokens = json.loads((folder / "tokens.json").read_text())
    return (
        FAST.load(folder / "tokenizer"),
        dict(np.load(folder / "chunks.npz")),
        tokens,
        dict(np.load(folder / "decoded.npz")),
    )


@pytest.mark.parametrize("part", ["fit", "eval", "edge", "oov"])
def test_encode_matches_reference(fixture, part):
    fast, chunks, tokens, _ = fixture
    expected = tokens["fit_first_16" if part == "fit" else part]
    assert [fast.encode(c) for c in chunks[f"{part}_chunks"][: len(expected)]] == expected


def test_decode_matches_reference(fixture):
    fast, chunks, tokens, decoded = fixture
    actual = fast.decode_batch(tokens["eval"])
    assert actual.ok.all() and actual.chunk.dtype == np.float32
    np.testing.assert_allclose(actual.chunk, decoded["eval_decoded"], atol=1e-6)
    assert np.abs(decoded["eval_decoded"] - chunks["eval_chunks"]).max() < 0.1


@pytest.mark.parametrize("part", ["edge", "oov"])
def test_ok_exactly_where_the_reference_decodes(fixture, part):
    """Where not ok, the reference gives zeros or the huge values of an incomplete character."""
    fast, _, tokens, decoded = fixture
    actual = fast.decode_batch(tokens[part])
    for chunk, ok, expected in zip(
        actual.chunk, actual.ok, decoded[f"{part}_decoded"], strict=True
    ):
        if ok:
            np.testing.assert_allclose(chunk, expected, atol=1e-6)
        else:
            assert not chunk.any() and (not expected.any() or np.abs(expected).max() > 100)
    if part == "edge":
        assert actual.ok[tokens["edge_roundtrip_ok"]].all()


def test_undecodable_ids_are_reported_not_raised(fixture):
    fast, _, tokens, _ = fixture
    bad = [
        *tokens["undecodable"],
        [],
        [-1],
        [fast.vocab_size],
        [2**40],
        list(np.int32(tokens["eval"][0][:-1])),
    ]
    for ids in bad:
        chunk, ok = fast.decode(ids)
        assert not ok and not chunk.any() and chunk.shape == (fast.horizon, fast.action_dim)


def test_batch_decodes_like_its_rows(fixture):
    fast, _, tokens, _ = fixture
    rows = [tokens["eval"][0], tokens["undecodable"][0], tokens["eval"][1]]
    actual = fast.decode_batch(rows)
    assert actual.ok.tolist() == [True, False, True]
    for ids, chunk in zip(rows, actual.chunk, strict=True):
        np.testing.assert_array_equal(chunk, fast.decode(ids).chunk)
    assert fast.decode_batch([]).chunk.shape == (0, fast.horizon, fast.action_dim)


def test_saved_files_equal_those_of_the_reference(fixture, folder, tmp_path):
    """All files are equal, so any program that loads the public format loads ours."""
    fast, chunks, tokens, _ = fixture
    fitted = FAST.fit(chunks["fit_chunks"], vocab_size=fast.vocab_size, scale=fast.scale)
    fitted.save(tmp_path)
    public = folder / "tokenizer"
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in public.iterdir()}
    for name in ("tokenizer.json", "processor_config.json"):
        ours, theirs = (json.loads((where / name).read_text()) for where in (tmp_path, public))
        assert ours == theirs, name
    again = FAST.from_json(json.loads(json.dumps(FAST.load(tmp_path).to_json())))
    assert [again.encode(c) for c in chunks["eval_chunks"]] == tokens["eval"]


def test_transformers_reads_saved_files(fixture, tmp_path):
    """The public processor is a transformers tokenizer plus the arithmetic tested above."""
    transformers = pytest.importorskip("transformers")
    fast, chunks, tokens, _ = fixture
    FAST.fit(chunks["fit_chunks"], vocab_size=fast.vocab_size, scale=fast.scale).save(tmp_path)
    public = transformers.AutoTokenizer.from_pretrained(tmp_path)
    codes = np.maximum(chunks["eval_dct_int"].astype(int) - fast.min_token, 0).reshape(
        len(tokens["eval"]), -1
    )
    texts = ["".join(map(chr, row)) for row in codes]
    assert public(texts)["input_ids"] == tokens["eval"]
    assert [public.decode(ids) for ids in tokens["eval"]] == texts


def test_sizes_that_the_file_does_not_set(fixture, tmp_path):
    """The universal tokenizer for all robots does not set them."""
    fast, chunks, tokens, _ = fixture
    fast.save(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(
        json.dumps(config | {"time_horizon": None, "action_dim": None})
    )
    with pytest.raises(ValueError, match="does not set time_horizon"):
        FAST.load(tmp_path)
    loaded = FAST.load(tmp_path, horizon=fast.horizon, action_dim=fast.action_dim)
    np.testing.assert_array_equal(
        loaded.decode_batch(tokens["eval"]).chunk, fast.decode_batch(tokens["eval"]).chunk
    )


def test_errors_name_the_wrong_input(fixture, tmp_path):
    fast, chunks, _, _ = fixture
    with pytest.raises(ValueError, match="fitted to"):
        fast.encode(chunks["eval_chunks"][0][:-1])
    with pytest.raises(ValueError, match="vocabulary"):
        FAST.fit(chunks["fit_chunks"], vocab_size=8)
    with pytest.raises(ValueError, match="NaN"):
        FAST.fit(chunks["fit_chunks"] * np.nan, vocab_size=512)
    with pytest.raises(UserError, match=r"no file .*processor_config.json; expected a folder with"):
        FAST.load(tmp_path)
    fast.save(tmp_path)
    with pytest.raises(
        ValueError, match=f"time_horizon is {fast.horizon}, expected {fast.horizon + 1}"
    ):
        FAST.load(tmp_path, horizon=fast.horizon + 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{tmp_path}/tokenizer.json: "):
        FAST.load(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "PaliGemmaProcessor"}')
    with pytest.raises(
        ValueError, match="no action_dim, min_token, .*processor_class is 'PaliGemmaProcessor'"
    ):
        FAST.load(tmp_path)
    (tmp_path / "processor_config.json").write_text("no json")
    with pytest.raises(ValueError, match="processor_config.json is not JSON"):
        FAST.load(tmp_path)
