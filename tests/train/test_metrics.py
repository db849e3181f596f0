"""Tests of the metrics of a step against loops over elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etcvla.models.vla import init_params
from etcvla.rules import assign, path_str
from etcvla.train.metrics import (
    GROUPS,
    TIME_BINS,
    average_metrics,
    flow_errors,
    grad_norms,
    mean_over_rows,
)
from tests.models.small import is_backbone, make_model

ROWS = 3
SAMPLES = 4
STEPS = 5
WIDTH = 6


def test_flow_errors_are_means_over_unmasked_entries():
    rng = np.random.default_rng(0)
    mask = rng.random((ROWS, SAMPLES, STEPS, WIDTH)) < 0.6
    mask[..., 4] = False  # a padded dimension
    error = rng.random((ROWS, SAMPLES, STEPS, WIDTH)).astype(np.float32) * mask
    time = rng.uniform(0, 0.79, (ROWS, SAMPLES)).astype(np.float32)  # nothing in the last bin
    time[0, 0] = 0.0
    actual = {
        name: np.asarray(mean_over_rows(both))
        for name, both in flow_errors(error, mask, time).items()
    }
    by_time = [[] for _ in range(TIME_BINS)]
    by_dim = [[] for _ in range(WIDTH)]
    for row, draw, step, dim in np.ndindex(error.shape):
        if mask[row, draw, step, dim]:
            by_time[int(time[row, draw] * TIME_BINS)].append(error[row, draw, step, dim])
            by_dim[dim].append(error[row, draw, step, dim])
    for name, groups in {"flow_error/time": by_time, "flow_error/dim": by_dim}.items():
        expected = [np.mean(group) if group else np.nan for group in groups]
        np.testing.assert_allclose(actual[name], expected, rtol=1e-5)
    assert np.isnan(actual["flow_error/time"][-1]) and np.isnan(actual["flow_error/dim"][4])


def test_time_one_is_in_the_last_bin():
    both = flow_errors(jnp.ones((1, 1, 2, 2)), jnp.ones((1, 1, 2, 2), bool), jnp.ones((1, 1)))[
        "flow_error/time"
    ]
    assert both.tolist() == [[[0, 0, 0, 0, 4], [0, 0, 0, 0, 4]]]


@pytest.mark.parametrize("changes", [{}, {"expert": None}, {"lora": ((".*", 2),)}])
def test_groups_of_all_parameters(changes):
    params = jax.eval_shape(lambda: init_params(make_model(**changes)))
    groups = jax.tree_util.tree_flatten_with_path(assign(GROUPS, params, "groups", all_used=False))[
        0
    ]
    expected = {"vision_tower", "embeddings", "language_model"} | (
        {"expert"} if "expert" not in changes else set()
    )
    assert {group for _, group in groups} == expected
    for path, group in groups:
        path = path_str(path)
        assert (group == "expert") == (not is_backbone(path)), path
        assert (group == "vision_tower") == path.startswith("img/"), path


def test_gradient_norms_by_group():
    grads = {
        "img": {"w": jnp.array([3.0, 4.0])},
        "llm": {
            "layers": {
                "mlp": {"linear": jnp.array([2.0])},
                "mlp_1": {"linear": jnp.array([[6.0]])},
            },
            "final_norm": None,
        },
        "state_proj": {"kernel": jnp.array([8.0])},
        "novel": jnp.array([1.0]),
    }  # None: frozen
    actual = {name: float(value) for name, value in grad_norms(grads).items()}
    assert actual == {
        "grad_norm/vision_tower": 5,
        "grad_norm/language_model": 2,
        "grad_norm/expert": 10,
        "grad_norm/other": 1,
    }


def test_averages_leave_out_nan():
    nan = np.nan
    rows = [
        {"a": 1.0, "b": nan, "v": np.array([nan, 2.0, nan])},
        {"a": 2.0, "b": nan, "v": np.array([4.0, 4.0, nan])},
    ]
    assert average_metrics(rows) == {"a": 1.5, "v_0": 4.0, "v_1": 3.0}
    assert list(average_metrics([{"v": np.arange(11.0)}]))[::10] == ["v_00", "v_10"]
    assert average_metrics([]) == {}
