"""Make the training state at step 0.

Parameters come from `init_from`, by the rules of `init_rules`, and are random otherwise. Each is
made with its final sharding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla import rules
from etcvla.models import pretrained
from etcvla.models.lora import merge
from etcvla.models.siglip import resize_positions
from etcvla.models.variants import config_from_dict
from etcvla.models.vla import init_params
from etcvla.train import sharding
from etcvla.train.base_model import BaseModel, find_base
from etcvla.train.checkpoint import SavedCheckpoint, check_tree, find_checkpoint
from etcvla.train.hosts import log_on_host0
from etcvla.train.optim import Optimizer
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState
from etcvla.train.vocabulary import read_rows

FlatParams = dict[str, Any]  # path with slashes -> array
_POSITIONS = "img/pos_embedding"


def initial_state(stage: Stage, optimizer: Optimizer, abstract: TrainState) -> TrainState:
    """Return the state at step 0, and log which parameters are loaded, fresh or ignored.

    Args:
      abstract: shapes with shardings.

    Raises ModelMismatchError if the parameters of `init_from` do not fit the model, UserError if a
    base model is damaged or does not fit the stage.
    """
    expected = flatten_dict(abstract.params, sep="/")
    loaded = {}
    if stage.config.init_from:
        parent = find_checkpoint(stage.config.init_from)
        base = find_base(stage.config.init_from)
        if parent is not None:
            loaded = _load_parent(stage, parent, expected)
        elif base is not None:
            loaded = _load_base(stage, base, expected)
        else:
            loaded = _load_released(stage, expected)
    params = _add_random(stage, loaded, expected)

    def _state(params: Any) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt=optimizer.init(params),
            skipped=jnp.zeros((), jnp.int32),
            start_rows=read_rows(params, stage.token_rows),
        )

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    make_state = jax.jit(_state, donate_argnums=0, out_shardings=shardings)
    return make_state(unflatten_dict(params, sep="/"))


def _load_parent(stage: Stage, parent: SavedCheckpoint, expected: FlatParams) -> FlatParams:
    """Return the parameters of another stage's checkpoint that `init_rules` selects."""
    config = stage.config
    params = _parent_ema(parent, expected)
    selected = _select(stage, params.keys() | expected.keys())
    check_tree(  # without adapters, which are always new
        {path: x for path, x in params.items() if selected[path]},
        {path: x for path, x in expected.items() if selected[path] and not _is_adapter(path)},
        f"init_from = {config.init_from}",
        "Choose the parameters to load with init_rules: "
        '(("regex", False), (".*", True)) does not load those that match the regex',
    )
    loaded = {path: params[path] for path in expected if path in params and selected[path]}
    fresh = sorted(expected.keys() - loaded.keys())
    ignored = sorted(params.keys() - expected.keys())
    log_on_host0(
        f"{config.stage}: loaded {len(loaded)} arrays from {config.init_from}\n"
        f"  fresh: {', '.join(fresh) or 'none'}\n"
        f"  not loaded: {', '.join(ignored) or 'none'}"
    )
    return loaded


def _is_adapter(path: str) -> bool:
    return path.endswith(("lora_a", "lora_b"))


def _select(stage: Stage, paths: set[str]) -> dict[str, bool]:
    """Return for each path whether `init_rules` loads the parameter."""
    flat = dict.fromkeys(sorted(paths), 0)
    return rules.assign(stage.config.init_rules, flat, "init_rules")


def _parent_ema(parent: SavedCheckpoint, expected: FlatParams) -> FlatParams:
    """Return a checkpoint's EMA with adapters merged and positions resized to our resolution."""
    mesh = next(iter(expected.values())).sharding.mesh
    ema = parent.ema(sharding.add_shardings(parent.ema_shapes(), mesh))
    params = flatten_dict(ema, sep="/")
    if _POSITIONS in params and _POSITIONS in expected:
        params[_POSITIONS] = _resize(params[_POSITIONS], expected[_POSITIONS].shape[1])
    adapters = {}
    for path in list(params):
        if _is_adapter(path):
            adapters[path] = params.pop(path)
    if not adapters:
        return params
    lora = config_from_dict(parent.meta()["model"]).adapters

    def _merge(params: FlatParams, adapters: FlatParams) -> Any:
        return merge(unflatten_dict(params | adapters, sep="/"), lora)

    merged = jax.jit(_merge, donate_argnums=0)(params, adapters)
    return flatten_dict(merged, sep="/")


def _resize(table: jax.Array, tokens: int) -> jax.Array:
    """Resize a position table to another resolution; keep its sharding."""
    if table.shape[1] == tokens:
        return table
    return jax.device_put(resize_positions(np.asarray(table), tokens), table.sharding)


def _load_released(stage: Stage, expected: FlatParams) -> FlatParams:
    """Return the released parameters at `init_from` that `init_rules` selects."""
    released, summary = pretrained.load(stage.config.init_from, stage.model.config)
    log_on_host0(f"{stage.config.stage}: {summary}")
    host_params = flatten_dict(released, sep="/")
    del released
    return _put_selected(stage, host_params, expected)


def _load_base(stage: Stage, base: BaseModel, expected: FlatParams) -> FlatParams:
    """Return the parameters of a base model that `init_rules` selects."""
    base.check_fits(stage.model.config, stage.assets.tokenizer)
    host_params = base.read_params()
    log_on_host0(f"{stage.config.stage}: loaded {len(host_params)} arrays from {base.folder}")
    return _put_selected(stage, host_params, expected)


def _put_selected(
    stage: Stage, host_params: dict[str, np.ndarray], expected: FlatParams
) -> FlatParams:
    """Put the parameters that `init_rules` selects on the devices; empties `host_params`."""
    selected = _select(stage, set(expected))
    params = {}
    for path in list(host_params):
        array = host_params.pop(path)  # freed one by one: two copies of all may not fit in memory
        if selected[path]:
            params[path] = jax.make_array_from_callback(
                array.shape, expected[path].sharding, array.__getitem__
            )
    return params


def _add_random(stage: Stage, params: FlatParams, expected: FlatParams) -> FlatParams:
    """Add random parameters for those that are missing."""
    missing = {path: x.sharding for path, x in expected.items() if path not in params}
    if not missing:
        return params

    def _init_missing() -> FlatParams:
        layout = stage.assets.tokenizer.layout
        random = init_params(stage.model, stage.config.seed, layout.loc, layout.places)
        random = flatten_dict(random, sep="/")
        return {path: random[path] for path in missing}

    return params | jax.jit(_init_missing, out_shardings=missing)()
