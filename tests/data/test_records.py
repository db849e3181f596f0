"""TFRecord framing and protobuf hopping, against records made byte by byte."""

import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcvla.data.records import (
    BYTES,
    FLOATS,
    INTS,
    RecordError,
    locate_features,
    read_element,
    read_floats,
    read_ints,
)
from etcvla.data.shards import TFRecordShard, masked_crc
from tests.data.handmade_rlds import example, feature, field, record, varint

INT64 = st.integers(-(2**63), 2**63 - 1)


def test_crc_is_castagnolis_masked():
    # 0xE3069283 is the check value of CRC-32C; the mask is a rotation by 15 bits plus a constant.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


@settings(deadline=None)
@given(st.lists(st.one_of(INT64, st.integers(0, 127)), max_size=40))
def test_ints_round_trip(values):
    packed = b"".join(map(varint, values))
    assert read_ints(packed).tolist() == values


@settings(deadline=None)
@given(
    texts=st.lists(st.binary(max_size=300), max_size=8),
    floats=st.lists(st.floats(width=32), max_size=8),
    ints=st.lists(INT64, min_size=1, max_size=8),
    order=st.permutations(["texts", "floats", "ints"]),
)
def test_every_value_is_found(texts, floats, ints, order):
    floats = np.array(floats, np.float32)
    values = {"texts": texts, "floats": floats, "ints": ints}
    payload = example({name: values[name] for name in order})
    found = locate_features(payload)
    assert list(found) == order
    assert [found[name].kind for name in ("texts", "floats", "ints")] == [BYTES, FLOATS, INTS]
    assert [found[name].count for name in ("texts", "floats", "ints")] == [
        len(texts),
        len(floats),
        len(ints),
    ]
    assert [read_element(payload, offset) for offset in found["texts"].offsets] == texts
    span = {name: payload[v.start : v.start + v.size] for name, v in found.items()}
    np.testing.assert_array_equal(read_floats(span["floats"]), floats)
    assert read_ints(span["ints"]).tolist() == ints


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2_100_000])
def test_element_sizes_around_varint_borders(size):
    payload = example({"image": [b"x", b"y" * size, b"z"]})
    peeked = []

    def peek(place):
        peeked.append(place)
        return payload[place : place + 4]

    offsets = locate_features(payload)["image"].offsets
    assert locate_features(payload, peek)["image"].offsets == offsets and len(peeked) == (
        size >= 4096
    )
    assert [len(read_element(payload, mark)) for mark in offsets] == [1, size, 1]


def test_row_lengths_are_summed():
    payload = example({"etc/ragged_row_lengths_0": [2, 0, 300]})
    found = locate_features(payload)["etc/ragged_row_lengths_0"]
    assert (found.count, found.offsets) == (3, [0, 2, 2, 302])


def test_value_before_key_and_a_feature_without_a_list():
    late, none = field(2, feature([b"a"])) + field(1, b"late"), field(1, b"no") + field(2, b"")
    payload = field(1, field(1, late) + field(1, none))
    found = locate_features(payload)
    assert (found["late"].count, found["no"].count, found["no"].kind) == (1, 0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"not a protobuf at all",
        field(
            1, field(1, field(1, b"x") + field(2, field(3, varint(1 << 3) + varint(5))))
        ),  # unpacked ints
        field(
            1, field(1, field(1, b"x") + field(2, field(2, b"\x0d" + struct.pack("<f", 1))))
        ),  # an unpacked float
        example({"x": [b"abc"]})[:-1],
        example({"x": [1, 2, 3]}) + b"\x0a",
    ],
)
def test_what_is_no_example_is_refused(bad):
    with pytest.raises((ValueError, IndexError)):
        locate_features(bad)


@pytest.fixture
def three_records(tmp_path):
    path = tmp_path / "x.tfrecord"
    payloads = [example({"x": [b"a" * n]}) for n in (5, 500, 50)]
    path.write_bytes(b"".join(map(record, payloads)))
    return path, payloads


def test_payloads(three_records):
    path, payloads = three_records
    shard = TFRecordShard(path)
    read = list(shard.records(verify_crc=True))
    assert [number for number, *_ in read] == [0, 1, 2] and [
        payload for *_, payload in read
    ] == payloads
    for _, place, payload in read:
        assert shard.read(place, [(0, 3), (2, 4)]) == [payload[:3], payload[2:6]]


@pytest.mark.parametrize("lost", [1, 3, 10, 60, 64, 70])
def test_truncation_names_file_record_and_offset(three_records, lost):
    path, payloads = three_records
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    last = len(data) - len(payloads[2]) - 16
    with pytest.raises(
        RecordError, match=re.escape(f"{path}, record 2 (byte {last})") + ".*truncated"
    ):
        list(TFRecordShard(path).records())
    damage = []
    assert len(list(TFRecordShard(path).records(damage=damage))) == 2
    assert len(damage) == 1 and "record 2" in str(damage[0])


def test_damaged_size_is_always_noticed(three_records):
    path, payloads = three_records
    data = bytearray(path.read_bytes())
    second = len(payloads[0]) + 16
    data[second] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match=rf"record 1 \(byte {second}\): damaged header"):
        list(TFRecordShard(path).records())


def test_damaged_payload_is_noticed_on_request(three_records):
    path, payloads = three_records
    data = bytearray(path.read_bytes())
    data[len(payloads[0]) + 16 + 12 + 100] ^= 1
    path.write_bytes(data)
    assert len(list(TFRecordShard(path).records())) == 3
    with pytest.raises(RecordError, match="record 1 .*damaged payload"):
        list(TFRecordShard(path).records(verify_crc=True))
    damage = []
    assert [n for n, *_ in TFRecordShard(path).records(verify_crc=True, damage=damage)] == [
        0,
        2,
    ] and len(damage) == 1


def test_empty_file_has_no_records(tmp_path):
    (tmp_path / "empty").touch()
    assert list(TFRecordShard(tmp_path / "empty").records()) == []
