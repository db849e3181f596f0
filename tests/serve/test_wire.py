"""The wire format: what openpi's client writes is read, what it never would is refused, and nothing else happens."""

import resource

import msgpack
import numpy as np
import pytest

from etcvla.serve import wire
from tests.serve.running import MESSAGE

DAMAGED = 10_000


def array(**fields):
    """An array of ours as a map, with other fields."""
    return {b"__ndarray__": True, b"data": b"\0" * 12, b"dtype": "<f4", b"shape": [3]} | {
        name.encode(): value for name, value in fields.items()
    }


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64", "float16", "float32", ">f8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_arrays_come_back(dtype, shape):
    value = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    (back,) = wire.unpack(wire.pack({"x": value})).values()
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype and not back.flags.writeable


def test_plain_values_and_scalars_come_back():
    message = {"a": [1, 2.5, "x", None, True], "b": {"c": np.float32(0.5), "d": np.int64(-3)}}
    assert wire.unpack(wire.pack(message)) == {
        "a": [1, 2.5, "x", None, True],
        "b": {"c": 0.5, "d": -3},
    }
    assert wire.unpack(
        msgpack.packb({"p": {b"__npgeneric__": True, b"data": "go", b"dtype": "<U2"}})
    ) == {"p": "go"}


@pytest.mark.parametrize(
    "value", [np.array([object()]), np.array(["x"]), np.zeros(2, "c8"), np.zeros(2, "i4,f4"), set()]
)
def test_what_is_no_number_is_not_sent(value):
    with pytest.raises(ValueError, match="cannot send"):
        wire.pack({"x": value})


@pytest.mark.parametrize(
    ("part", "error"),
    [
        (array(dtype="|O"), "dtype '|O'"),
        (array(dtype="|V4"), "dtype"),
        (array(dtype="<f4,<f4"), "dtype"),
        (array(dtype="S4"), "dtype"),
        (array(dtype=7), "dtype 7"),
        (array(shape=[4]), r"12 bytes, expected 16"),
        (array(shape=[-3]), "shape"),
        (array(shape=[True]), "shape"),
        (array(shape=[1] * 5), "shape"),
        (array(shape=3), "shape"),
        (array(shape=[2**60, 2**60]), "expected"),
        (array(data="text"), "str"),
        (array(data=None), "NoneType"),
        ({b"__npgeneric__": True, b"data": b"x", b"dtype": "<f4"}, "scalar"),
        ({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}, "scalar"),
        ({b"pickle": b"x"}, "the key b'pickle'"),
        ([[]] * 300, "lists and maps"),
        ([0] * 1025, "exceeds max_array_len"),
        ("x" * 17_000, "exceeds max_str_len"),
        (msgpack.ExtType(5, b"abc"), "ext"),
        (msgpack.Timestamp(1), "ext"),
    ],
)
def test_what_openpis_client_never_sends_is_refused(part, error):
    with pytest.raises(ValueError, match=error.replace("|", r"\|")):
        wire.unpack(msgpack.packb({"x": part}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x81\xa1",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x81\xa1x" * 3000,
        b"\xdd\xff\xff\xff\xff",
        b"\x01",
        b"\x90",
        b"\x80\x80",
        b"\x81\x01\x02",
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError, match="the message is"):
        wire.unpack(data)


def damage(data, rng):
    """The bytes with a few changed, some of them lost, doubled, or put elsewhere."""
    data, kind = bytearray(data), rng.integers(4)
    at, length = rng.integers(len(data)), rng.integers(1, 64)
    if kind == 0:
        for place in rng.integers(0, len(data), rng.integers(1, 8)):
            data[place] = rng.integers(256)
    elif kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = data[at : at + length]
    else:
        return bytes(data[:at])
    return bytes(data)


def test_damaged_messages_do_no_harm():
    """Each is read or refused; memory stays where it was."""
    rng = np.random.default_rng(0)
    small = {
        "observation/image": np.zeros((2, 2, 3), np.uint8),
        "observation/state": np.arange(8.0),
        "prompt": "go",
        "n": [1, {"a": 2}],
        "s": np.float32(1),
    }
    others = {"x": {"y": {"z": [0.5] * 20}}, "u": "words"}, {"e": np.zeros((0, 3))}
    whole = [wire.pack(message) for message in (small, *others)]
    refused, before = 0, None
    for i in range(DAMAGED):
        try:
            wire.unpack(damage(whole[i % len(whole)], rng))
        except ValueError:
            refused += 1
        if i == DAMAGED // 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert DAMAGED // 2 < refused < DAMAGED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


def test_a_message_cannot_grow_much():
    """Lists in lists that each announce as much as is allowed, and as many empty ones as fit."""
    for bomb in (
        b"\xdc\x04\x00" * 400 + b"\x00" * 100_000,
        b"\x81\xa1x\xdc\x04\x00" + b"\x90" * 1024,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match="the message is no msgpack"):
            wire.unpack(bomb)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_384


def test_a_real_message_is_read():
    back = wire.unpack(wire.pack(MESSAGE))
    assert back["prompt"] == MESSAGE["prompt"]
    np.testing.assert_array_equal(back["observation/image"], MESSAGE["observation/image"])
