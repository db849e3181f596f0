"""TFRecord framing and the location of values, against records that are written byte by byte."""

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


def test_masked_crc_of_check_value():
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
def test_locate_features_finds_every_value(texts, floats, ints, order):
    floats = np.array(floats, np.float32)
    values = {"texts": texts, "floats": floats, "ints": ints}
    payload = example({name: values[name] for name in order})
    locations = locate_features(payload)
    assert list(locations) == order
    assert [locations[name].kind for name in ("texts", "floats", "ints")] == [BYTES, FLOATS, INTS]
    assert [locations[name].count for name in ("texts", "floats", "ints")] == [
        len(values) for values in (texts, floats, ints)
    ]
    assert [read_element(payload, offset) for offset in locations["texts"].offsets] == texts
    data = {name: payload[v.start : v.start + v.size] for name, v in locations.items()}
    np.testing.assert_array_equal(read_floats(data["floats"]), floats)
    assert read_ints(data["ints"]).tolist() == ints


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2_100_000])
def test_element_sizes_at_varint_boundaries(size):
    payload = example({"image": [b"x", b"y" * size, b"z"]})
    peeked = []

    def peek(offset):
        peeked.append(offset)
        return payload[offset : offset + 4]

    offsets = locate_features(payload)["image"].offsets
    assert locate_features(payload, peek)["image"].offsets == offsets and len(peeked) == (
        size >= 4096
    )
    assert [len(read_element(payload, mark)) for mark in offsets] == [1, size, 1]


def test_row_lengths_have_running_sums():
    payload = example({"etc/ragged_row_lengths_0": [2, 0, 300]})
    location = locate_features(payload)["etc/ragged_row_lengths_0"]
    assert (location.count, location.offsets) == (3, [0, 2, 2, 302])


def test_value_before_key_and_feature_without_list():
    late = field(2, feature([b"a"])) + field(1, b"late")
    none = field(1, b"no") + field(2, b"")
    payload = field(1, field(1, late) + field(1, none))
    locations = locate_features(payload)
    assert (locations["late"].count, locations["no"].count, locations["no"].kind) == (1, 0, 0)


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
def test_malformed_examples_raise(bad):
    with pytest.raises((ValueError, IndexError)):
        locate_features(bad)


@pytest.fixture
def three_records(tmp_path):
    path = tmp_path / "x.tfrecord"
    payloads = [example({"x": [b"a" * n]}) for n in (5, 500, 50)]
    path.write_bytes(b"".join(map(record, payloads)))
    return path, payloads


def test_records_and_ranges_of_payloads(three_records):
    path, payloads = three_records
    shard = TFRecordShard(path)
    read = list(shard.records(verify_crc=True))
    assert [number for number, *_ in read] == [0, 1, 2]
    assert [payload for *_, payload in read] == payloads
    for _, position, payload in read:
        assert shard.read(position, [(0, 3), (2, 4)]) == [payload[:3], payload[2:6]]


@pytest.mark.parametrize("lost", [1, 3, 10, 60, 64, 70])
def test_truncated_file_names_record_and_offset(three_records, lost):
    path, payloads = three_records
    data = path.read_bytes()
    path.write_bytes(data[:-lost])
    last = len(data) - len(payloads[2]) - 16
    with pytest.raises(
        RecordError, match=re.escape(f"{path}, record 2 (byte {last})") + ".*truncated"
    ):
        list(TFRecordShard(path).records())
    damage = []
    assert len(list(TFRecordShard(path).records(report=damage.append))) == 2
    assert len(damage) == 1 and "record 2" in str(damage[0])


def test_damaged_size_always_raises(three_records):
    path, payloads = three_records
    data = bytearray(path.read_bytes())
    second = len(payloads[0]) + 16
    data[second] ^= 1
    path.write_bytes(data)
    with pytest.raises(RecordError, match=rf"record 1 \(byte {second}\): damaged header"):
        list(TFRecordShard(path).records())


def test_damaged_payload_raises_with_verify_crc(three_records):
    path, payloads = three_records
    data = bytearray(path.read_bytes())
    data[len(payloads[0]) + 16 + 12 + 100] ^= 1
    path.write_bytes(data)
    assert len(list(TFRecordShard(path).records())) == 3
    with pytest.raises(RecordError, match="record 1 .*damaged payload"):
        list(TFRecordShard(path).records(verify_crc=True))
    damage = []
    records = TFRecordShard(path).records(verify_crc=True, report=damage.append)
    assert [number for number, *_ in records] == [0, 2]
    assert len(damage) == 1


def test_empty_file_has_no_records(tmp_path):
    (tmp_path / "empty").touch()
    assert list(TFRecordShard(tmp_path / "empty").records()) == []
