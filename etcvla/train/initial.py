"""Step 0 of a stage: parameters of `init_from`, random ones where those are not wanted, each made where it will lie."""

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
from etcvla.train.checkpoint import SavedCheckpoint, find_checkpoint
from etcvla.train.hosts import log_on_host0
from etcvla.train.optim import Optimizer
from etcvla.train.stage import Stage
from etcvla.train.state import TrainState

Flat = dict[str, Any]  # by path, with slashes
_POSITIONS = "img/pos_embedding"
_ADAPTERS = ("lora_a", "lora_b")


def initial_state(stage: Stage, optimizer: Optimizer, abstract: TrainState) -> TrainState:
    """Step 0. Says what was taken, what is fresh and what was left.

    Args:
      abstract: shapes with shardings.

    Raises ValueError with sorted lists where `init_from` and the model do not fit.
    """
    places = jax.tree.map(lambda x: x.sharding, abstract)
    wanted = flatten_dict(abstract.params, sep="/")
    params = _complete(stage, _taken(stage, wanted) if stage.config.init_from else {}, wanted)

    def rest(params):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt=optimizer.init(params),
            skipped=jnp.zeros((), jnp.int32),
        )

    return jax.jit(rest, donate_argnums=0, out_shardings=places)(unflatten_dict(params, sep="/"))


def _taken(stage: Stage, wanted: Flat) -> Flat:
    """The parameters that `init_rules` lets through of what lies at `init_from`."""
    parent = find_checkpoint(stage.config.init_from)
    if parent is None:
        return _released(stage, wanted)
    params = _inherited(parent, wanted)
    keep = _choice(stage, {*params, *wanted})
    fresh = sorted(path for path in wanted if path not in params or not keep[path])
    extra = sorted(params.keys() - wanted.keys())
    lacking = [path for path in fresh if keep[path] and not path.endswith(_ADAPTERS)]
    unwanted = [path for path in extra if keep[path]]
    other = sorted(
        f"{path} {list(params[path].shape)} instead of {list(wanted[path].shape)}"
        for path in params.keys() & wanted.keys()
        if keep[path] and params[path].shape != wanted[path].shape
    )
    if lacking or unwanted or other:
        raise ValueError(
            f"init_from = {stage.config.init_from} does not fit the model.\n  only in the model: {lacking}"
            f"\n  only in the checkpoint: {unwanted}\n  misshapen: {other}\nWhat is to start anew or stay "
            'behind is said by init_rules, as (("regex", False), (".*", True))'
        )
    taken = {path: params[path] for path in wanted if path not in fresh}
    log_on_host0(
        f"{stage.config.stage}: {len(taken)} arrays from {stage.config.init_from}"
        f"\n  fresh: {', '.join(fresh) or 'none'}\n  left there: {', '.join(extra) or 'none'}"
    )
    return taken


def _choice(stage: Stage, paths: set[str]) -> dict[str, bool]:
    return rules.assign(stage.config.init_rules, dict.fromkeys(sorted(paths), 0), "init_rules")


def _inherited(parent: SavedCheckpoint, wanted: Flat) -> Flat:
    """The EMA of another stage, its adapters merged, its positions at our resolution."""
    mesh = next(iter(wanted.values())).sharding.mesh
    params = flatten_dict(parent.ema(sharding.placed(parent.ema_shapes(), mesh)), sep="/")
    if _POSITIONS in params and _POSITIONS in wanted:
        params[_POSITIONS] = _resized(params[_POSITIONS], wanted[_POSITIONS].shape[1])
    adapters = {path: params.pop(path) for path in list(params) if path.endswith(_ADAPTERS)}
    if not adapters:
        return params
    lora = config_from_dict(parent.meta()["model"]).adapters

    def merged(params, adapters):
        return merge(unflatten_dict(params | adapters, sep="/"), lora)

    return flatten_dict(jax.jit(merged, donate_argnums=0)(params, adapters), sep="/")


def _resized(table: jax.Array, tokens: int) -> jax.Array:
    """The position table for another resolution, where it lay."""
    if table.shape[1] == tokens:
        return table
    return jax.device_put(resize_positions(np.asarray(table), tokens), table.sharding)


def _released(stage: Stage, wanted: Flat) -> Flat:
    params, found = pretrained.load(stage.config.init_from, stage.model.config)
    log_on_host0(f"{stage.config.stage}: {found}")
    params, keep = flatten_dict(params, sep="/"), _choice(stage, set(wanted))
    for path in list(params):  # one by one, so that no second copy of all is ever there
        array, where = params.pop(path), wanted[path].sharding
        if keep[path]:
            params[path] = jax.make_array_from_callback(array.shape, where, array.__getitem__)
    return params


def _complete(stage: Stage, params: Flat, wanted: Flat) -> Flat:
    """The parameters, and random ones at those places that they leave empty."""
    lacking = {path: x.sharding for path, x in wanted.items() if path not in params}

    def fresh():
        made = flatten_dict(
            init_params(stage.model, stage.config.seed, stage.assets.tokenizer.layout.loc), sep="/"
        )
        return {path: made[path] for path in lacking}

    return params | (jax.jit(fresh, out_shardings=lacking)() if lacking else {})
