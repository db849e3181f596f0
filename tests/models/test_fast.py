"""FAST against the reference implementation's numbers, and its own round trip."""

import json

import numpy as np
import pytest

from etcvla.models.fast import FAST
from tests.golden_dir import golden

FOLDERS = golden("fast_tokenizer")


@pytest.fixture(params=FOLDERS, ids=lambda p: p.name)
def fixture(request):
    folder = request.param
    tokens = json.loads((folder / "tokens.json").read_text())
    return FAST.load(folder / "tokenizer"), dict(np.load(folder / "chunks.npz")), tokens, dict(
        np.load(folder / "decoded.npz"))


@pytest.mark.parametrize("part", ["fit", "eval", "edge", "oov"])
def test_encode_matches_reference(fixture, part):
    fast, chunks, tokens, _ = fixture
    expected = tokens["fit_first_16" if part == "fit" else part]
    assert [fast.encode(c) for c in chunks[f"{part}_chunks"][:len(expected)]] == expected


def test_decode_matches_reference(fixture):
    fast, chunks, tokens, decoded = fixture
    for ids, expected in zip(tokens["eval"], decoded["eval_decoded"], strict=True):
        chunk, whole = fast.decode(ids)
        assert whole
        np.testing.assert_allclose(chunk, expected, atol=1e-6)
    assert np.abs(decoded["eval_decoded"] - chunks["eval_chunks"]).max() < 0.1


def test_undecodable_is_reported_not_raised(fixture):
    fast, _, tokens, _ = fixture
    for ids in tokens["undecodable"]:
        chunk, whole = fast.decode(ids)
        assert not whole and not chunk.any()


def test_fit_matches_reference_and_survives_saving(fixture, tmp_path):
    fast, chunks, tokens, _ = fixture
    fitted = FAST.fit(chunks["fit_chunks"], vocab_size=fast.vocab_size, scale=fast.scale)
    assert [fitted.encode(c) for c in chunks["eval_chunks"]] == tokens["eval"]
    fitted.save(tmp_path)
    again = FAST.from_json(json.loads(json.dumps(FAST.load(tmp_path).to_json())))
    assert [again.encode(c) for c in chunks["eval_chunks"]] == tokens["eval"]


def test_bad_input_is_named(fixture):
    fast, chunks, _, _ = fixture
    with pytest.raises(ValueError, match="fitted to"):
        fast.encode(chunks["eval_chunks"][0][:-1])
    with pytest.raises(ValueError, match="vocabulary"):
        FAST.fit(chunks["fit_chunks"], vocab_size=8)
    with pytest.raises(ValueError, match="NaN"):
        FAST.fit(chunks["fit_chunks"] * np.nan, vocab_size=512)
