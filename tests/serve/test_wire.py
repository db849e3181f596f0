"""The wire format reads what openpi's client writes and refuses everything else."""

import resource

import msgpack
import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.serve import wire
from tests.serve.running_server import MESSAGE

DAMAGED_MESSAGES = 10_000


def array(**fields):
    """Return the map of an array with some fields replaced."""
    return {b"__ndarray__": True, b"data": b"\0" * 12, b"dtype": "<f4", b"shape": [3]} | {
        name.encode(): value for name, value in fields.items()
    }


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64", "float16", "float32", ">f8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_arrays_keep_values_and_dtype(dtype, shape):
    value = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    back = wire.unpack(wire.pack({"x": value}))["x"]
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype
    assert not back.flags.writeable


def test_plain_values_and_scalars_are_kept():
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
def test_other_types_cannot_be_sent(value):
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
        (array(data="text"), "of str, expected 12"),
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
def test_wrong_values_are_refused(part, error):
    with pytest.raises(UserError, match=error.replace("|", r"\|")):
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
def test_wrong_messages_are_refused(data):
    with pytest.raises(UserError, match="the message is"):
        wire.unpack(data)


def damage(data, rng):
    """Return the bytes after changing, removing, repeating or cutting off some of them."""
    data = bytearray(data)
    kind = rng.integers(4)
    at = rng.integers(len(data))
    length = rng.integers(1, 64)
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


def test_damaged_messages_are_read_or_refused_in_constant_memory():
    rng = np.random.default_rng(0)
    small = {
        "observation/image": np.zeros((2, 2, 3), np.uint8),
        "observation/state": np.arange(8.0),
        "prompt": "go",
        "n": [1, {"a": 2}],
        "s": np.float32(1),
    }
    nested = {"x": {"y": {"z": [0.5] * 20}}, "u": "words"}
    empty = {"e": np.zeros((0, 3))}
    messages = [wire.pack(message) for message in (small, nested, empty)]
    refused = 0
    before = None
    for i in range(DAMAGED_MESSAGES):
        try:
            wire.unpack(damage(messages[i % len(messages)], rng))
        except UserError:
            refused += 1
        if i == DAMAGED_MESSAGES // 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert DAMAGED_MESSAGES // 2 < refused < DAMAGED_MESSAGES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


def test_small_messages_cannot_take_much_memory():
    """Messages with nested lists of the largest allowed size, and with many empty lists."""
    for bomb in (
        b"\xdc\x04\x00" * 400 + b"\x00" * 100_000,
        b"\x81\xa1x\xdc\x04\x00" + b"\x90" * 1024,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match="the message is not msgpack"):
            wire.unpack(bomb)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16_384


def test_complete_message_is_kept():
    back = wire.unpack(wire.pack(MESSAGE))
    assert back["prompt"] == MESSAGE["prompt"]
    np.testing.assert_array_equal(back["observation/image"], MESSAGE["observation/image"])
