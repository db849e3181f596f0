"""A batch depends on (seed, step) only, and each process builds its slice of the same batch."""

import jax
import numpy as np
import pytest

from etcvla import batch as batch_lib
from etcvla.data.loader import BufferPool, batches
from etcvla.train.sharding import make_mesh, put_batch
from tests.data.handmade_rlds import write_robot_set
from tests.data.made_rows import make_builder, stream


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    directory = write_robot_set(tmp_path_factory.mktemp("robot"))
    return make_builder(
        directory,
        stream("action", "action", extra_segments=1),
        stream("etc", "any", weight=0.7),
        steps=9,
    )


@pytest.fixture(scope="module")
def whole(builder):
    return list(batches(builder, start=0))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_batches_follow_the_plan(builder, whole):
    assert len(whole) == builder.plan.steps == 9
    for step, batch in enumerate(whole):
        batch_lib.validate(batch, B=6, C=2, H=28, W=28, L=96, Q=5, P=4, A=3)
        for i, draw in enumerate(builder.plan.rows(step, 0, 6)):
            assert_same({name: value[i] for name, value in batch.items()}, builder(*draw))
        assert (batch["action_segment"] > 0).sum() == builder.plan.counts[step, 0]
    assert (whole[0]["images"] != whole[1]["images"]).any()


@pytest.mark.parametrize(("start", "threads", "prefetch"), [(3, 1, 1), (8, 3, 8), (0, 4, 2)])
def test_loader_started_at_a_later_step_gives_the_same_batches(
    builder, whole, start, threads, prefetch
):
    late = list(batches(builder, start=start, threads=threads, prefetch=prefetch))
    assert len(late) == 9 - start
    for a, b in zip(late, whole[start:], strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches(builder, whole, workers):
    late = list(batches(builder, start=4, threads=1, workers=workers, prefetch=1))
    assert len(late) == 5
    for a, b in zip(late, whole[4:], strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(
    "parts", [[[0, 1, 2], [3, 4, 5]], [[0, 1, 4, 5], [2, 3]], [[0, 5], [1], [2, 3, 4]]]
)
def test_rows_of_all_processes_make_up_the_batch(builder, whole, parts):
    """The rows of the processes may be in any order, as a mesh distributes them."""
    loaders = [batches(builder, start=2, rows=rows) for rows in parts]
    for step in range(2, 5):
        for rows, loader in zip(parts, loaders, strict=True):
            assert_same(next(loader), {name: value[rows] for name, value in whole[step].items()})


def test_schema_errors_name_the_field(whole):
    batch = whole[0]
    for change, message in (
        ({"tokens": batch["tokens"].astype(np.int64)}, r"batch\['tokens'\] is int64\[6, 96\]"),
        ({"state": batch["state"][:5]}, r"batch\['state'\]: axis B has size 5, expected 6"),
        ({"actions": batch["actions"][0]}, r"float32\[1, 4, 3\], expected float32\[B, K, P, A\]"),
    ):
        with pytest.raises(ValueError, match=message):
            batch_lib.validate({**batch, **change})
    with pytest.raises(ValueError, match="no field 'stream'"):
        batch_lib.validate({name: value for name, value in batch.items() if name != "stream"})


def test_buffer_is_reused_only_without_references():
    buffers = BufferPool(max_buffers=2)
    first = buffers.empty((4, 6))
    address = first.ctypes.data
    view = np.asarray(first[1:, ::2]).T
    del first
    second = buffers.empty((4, 6))
    assert second.ctypes.data != address and view.shape == (3, 3)  # the view is a reference
    del view
    assert buffers.empty((4, 6)).ctypes.data == address
    assert buffers.empty((2, 5)).shape == (2, 5) and buffers.empty((4, 6)).dtype == np.uint8


def test_kept_batches_do_not_change(builder, whole):
    held = []
    copies = []
    for batch in batches(builder, start=0, threads=2, prefetch=2):
        held.append(batch)
        copies.append({name: value.copy() for name, value in batch.items()})
    for a, b, c in zip(held, copies, whole, strict=True):
        assert_same(a, b)
        assert_same(a, c)


def test_batches_on_a_device_do_not_change(builder, whole):
    """A device array may share the batch's memory without a copy."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    held = [
        put_batch(batch, mesh, len(batch["tokens"]))
        for batch in batches(builder, start=0, threads=2, prefetch=2)
    ]
    for a, b in zip(held, whole, strict=True):
        assert_same({name: np.asarray(value) for name, value in a.items()}, b)
