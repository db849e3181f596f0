"""Tests of loading and exporting released weights in all formats."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from etcvla.errors import UserError
from etcvla.models import pretrained
from etcvla.models.lora import merge
from etcvla.models.pretrained import layout
from etcvla.models.siglip import resize_positions
from etcvla.models.vla import VLA
from tests.golden_dir import ROOT, models
from tests.models.checkpoint_files import (
    BIG_VISION,
    HUGGING_FACE,
    OPENPI,
    is_gemma2,
    read_safetensors,
    write_safetensors,
)
from tests.models.released import load_openpi, load_paligemma, openpi_config
from tests.models.small import CONFIG, is_backbone, make_model, random_params

GEMMA2 = {
    "post_norms": True,
    "attn_softcap": 4.0,
    "final_softcap": 5.0,
    "window": 3,
    "query_pre_attn_scalar": 5,
}


def name_of(fixture):
    return type(fixture).__name__


@pytest.fixture(params=[*HUGGING_FACE, *BIG_VISION, *OPENPI], ids=name_of)
def fixture(request):
    return request.param


@pytest.fixture(params=HUGGING_FACE, ids=name_of)
def hf(request):
    return request.param


@pytest.fixture(params=OPENPI, ids=name_of)
def openpi(request):
    return request.param


@pytest.fixture
def hf_params(hf):
    return flatten_dict(load_paligemma(hf.folder).params, sep="/")


def flatten(tree):
    """Return a tree by path; a flat one is returned as it is."""
    return tree if "img/pos_embedding" in tree else flatten_dict(tree, sep="/")


def assert_same(actual, expected):
    actual = flatten(actual)
    expected = flatten(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def vlm(config, **changes):
    """Return the config with another language model; the expert follows where both must agree."""
    shared = {
        name: value for name, value in changes.items() if name in ("depth", "num_heads", "head_dim")
    }
    return dataclasses.replace(
        config,
        vlm=dataclasses.replace(config.vlm, **changes),
        expert=dataclasses.replace(config.expert, **shared),
    )


# Hugging Face: names, shards, tied tables


def released_names(name):
    return name.replace("vision_model.", "").replace("vision_tower.", "vision_tower.vision_model.")


def names_of_4_50(name):
    return "model." + released_names(name).replace("language_model.model.", "language_model.")


@pytest.mark.parametrize("rename", [released_names, names_of_4_50])
def test_all_generations_of_names_load_the_same_parameters(hf, hf_params, tmp_path, rename):
    path = hf.write({rename(name): tensor for name, tensor in hf.arrays().items()}, tmp_path / "hf")
    assert_same(pretrained.load(path, hf.config)[0], hf_params)


@pytest.mark.parametrize("folder", sorted(ROOT.glob("*/released_key_names")), ids=str)
def test_released_names_load_without_config_json(folder, caplog):
    expected = load_paligemma(folder.parent)
    assert_same(pretrained.load(folder, expected.model.config)[0], expected.params)
    assert "the numbers of heads are not checked" in caplog.text


def test_sharded_checkpoint_loads_and_missing_shard_is_an_error(hf, hf_params, tmp_path):
    path = hf.write({}, tmp_path / "hf")
    (path / "model.safetensors").unlink()
    where = {}
    for i, name in enumerate(hf.arrays()):
        where[name] = f"model-{i % 3 + 1:05d}-of-00003.safetensors"
    for file in set(where.values()):
        write_safetensors(
            path / file, {name: hf.arrays()[name] for name in where if where[name] == file}
        )
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(pretrained.load(path, hf.config)[0], hf_params)
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        UserError, match="names model-00002-of-00003.safetensors, which .*hf does not have"
    ):
        pretrained.load(path, hf.config)


def test_output_layer_must_equal_the_embedding_table(hf, hf_params, tmp_path):
    tensors = hf.arrays()
    table = "language_model.model.embed_tokens.weight"
    head = tensors[table]
    for name, held in (
        ("both", tensors),
        ("head", {n: t for n, t in tensors.items() if n != table}),
    ):
        path = hf.write(held | {"lm_head.weight": head}, tmp_path / name)
        assert_same(pretrained.load(path, hf.config)[0], hf_params)
    other = hf.write(tensors | {"lm_head.weight": head + 1}, tmp_path / "other")
    with pytest.raises(ValueError, match="lm_head differs from the embedding table"):
        pretrained.load(other, hf.config)


def test_padding_rows_of_the_vocabulary_are_left_out(hf, hf_params):
    rows = hf.config.vocab_size
    params, actual = pretrained.load(
        hf.folder, dataclasses.replace(hf.config, vocab_size=rows - 64)
    )
    np.testing.assert_array_equal(
        params["llm"]["embedder"]["input_embedding"],
        hf_params["llm/embedder/input_embedding"][:-64],
    )
    assert "embed_tokens.weight): its last 64 rows" in str(actual)
    with pytest.raises(pretrained.MismatchError) as error:
        pretrained.load(hf.folder, dataclasses.replace(hf.config, vocab_size=rows - 63))
    width = hf.config.vlm.width
    assert error.value.misshapen == [
        "llm/embedder/input_embedding (language_model.model.embed_tokens.weight): "
        f"[{rows}, {width}] instead of [{rows - 63}, {width}]"
    ]


def test_numbers_of_heads_are_compared(hf):
    other = vlm(
        hf.config, num_heads=hf.config.vlm.num_heads * 2, head_dim=hf.config.vlm.head_dim // 2
    )
    other = dataclasses.replace(
        other,
        vlm=dataclasses.replace(other.vlm, num_kv_heads=2),
        expert=dataclasses.replace(other.expert, num_kv_heads=2),
    )
    with pytest.raises(
        pretrained.MismatchError, match=f"vlm.head_dim {hf.config.vlm.head_dim} instead of"
    ) as error:
        pretrained.load(hf.folder, other)
    assert error.value.missing == error.value.extra == error.value.misshapen == []


@pytest.mark.parametrize(
    "folder", filter(is_gemma2, models("paligemma_hf")), ids=lambda folder: folder.name
)
def test_gemma2_does_not_load_into_gemma1(folder):
    gemma1 = {
        "post_norms": False,
        "attn_softcap": 0.0,
        "final_softcap": 0.0,
        "window": 0,
        "query_pre_attn_scalar": 0,
    }
    config = load_paligemma(folder).model.config
    with pytest.raises(pretrained.MismatchError) as error:
        pretrained.load(folder, vlm(config, **gemma1))
    assert "vlm.attn_softcap" in str(error.value) and "vlm.window" in str(error.value)
    assert len(error.value.extra) == 2 * config.vlm.depth and not error.value.missing


# big_vision and openpi


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("fixture", BIG_VISION, ids=name_of)
def test_big_vision_dtypes_with_and_without_prefix(fixture, dtype, tmp_path):
    arrays = {
        name.removeprefix("params/"): value.astype(dtype)
        for name, value in fixture.arrays().items()
    }
    expected = {name: value.astype(np.float32) for name, value in arrays.items()}
    if dtype is ml_dtypes.bfloat16:
        arrays = {name: value.view("V2") for name, value in arrays.items()}
    arrays["img/head/kernel"] = np.asfortranarray(arrays["img/head/kernel"])
    for prefix in ("", "params/"):
        path = fixture.write(
            {prefix + name: value for name, value in arrays.items()},
            tmp_path / (prefix[:-1] or "bare"),
        )
        params, _ = pretrained.load(path, fixture.config)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
        assert_same(params, expected)


def params_folders():
    """List all `params` folders of the openpi fixtures."""
    folders = []
    for folder in models("pi0", "pi05"):
        folders += folder.rglob("params")
    return folders


@pytest.mark.parametrize("path", params_folders(), ids=lambda path: str(path.relative_to(ROOT)))
def test_openpi_checkpoints_load(path):
    folder = next(parent for parent in path.parents if (parent / "config.json").exists())
    assert_same(pretrained.load(path, openpi_config(folder))[0], load_openpi(folder).params)
    assert pretrained.find(path.parent).path == path


def test_missing_expert_is_reported_as_fresh(fixture, tmp_path):
    """Such checkpoints are PaliGemma, and pi0-FAST in the format of openpi."""
    backbone = {
        name: value
        for name, value in fixture.arrays().items()
        if fixture not in OPENPI or is_backbone(name.removeprefix("PaliGemma/"))
    }
    config = fixture.config
    params, actual = pretrained.load(fixture.write(backbone, tmp_path / "checkpoint"), config)
    shapes = pretrained.parameter_shapes(config)
    assert (
        flatten_dict(params, sep="/").keys()
        == actual.loaded.keys()
        == set(filter(is_backbone, shapes))
    )
    assert actual.loaded.keys() | actual.fresh.keys() == shapes.keys()
    fresh = sum(math.prod(shape) for name, shape in shapes.items() if not is_backbone(name))
    assert f"{fresh:,} parameters in {len(actual.fresh)} arrays: action_in_proj, " in str(actual)


@pytest.mark.parametrize("size", [100, 3000])
def test_piece_size_does_not_change_what_is_read_and_written(fixture, size, tmp_path, monkeypatch):
    expected, _ = pretrained.load(
        fixture.write(fixture.arrays(), tmp_path / "checkpoint"), fixture.config
    )
    monkeypatch.setattr(layout, "CHUNK", size)
    assert_same(
        pretrained.load(fixture.write(fixture.arrays(), tmp_path / "again"), fixture.config)[0],
        expected,
    )
    if fixture in HUGGING_FACE:
        config = dataclasses.replace(fixture.config, vocab_size=fixture.config.vocab_size - 64)
        params, _ = pretrained.load(fixture.folder, config)
        pretrained.export_hugging_face(params, config, tmp_path / "out")
        assert_same(pretrained.load(tmp_path / "out", config)[0], params)


# Errors


def test_error_lists_missing_extra_and_misshapen_parameters(fixture, tmp_path):
    tensors = fixture.arrays()
    del tensors[fixture.dropped]
    prefix = fixture.dropped.split("/")[0] + "/" if fixture.dropped.startswith("params/") else ""
    tensors |= {
        f"{prefix}zzz": np.zeros(3, np.float32),
        f"{prefix}aaa": np.zeros(3, np.float32),
        fixture.reshaped: tensors[fixture.reshaped][..., :-1],
    }
    with pytest.raises(pretrained.MismatchError) as error:
        pretrained.load(fixture.write(tensors, tmp_path / "checkpoint"), fixture.config)
    actual = error.value
    assert [name.split(" ")[0] for name in actual.missing] == [fixture.paths[0]]
    assert fixture.dropped.rsplit(".", 1)[-1] in actual.missing[0]
    assert actual.extra == [f"{prefix}aaa", f"{prefix}zzz"]
    shape = list(tensors[fixture.reshaped].shape)
    expected = list(fixture.arrays()[fixture.reshaped].shape)
    assert actual.misshapen == [
        f"{fixture.paths[1]} ({fixture.reshaped}): {shape} instead of {expected}"
    ]
    for line in (*actual.missing, *actual.extra, *actual.misshapen):
        assert line in str(actual)


def test_error_lists_sizes_of_another_architecture(fixture, tmp_path):
    path = fixture.write(fixture.arrays(), tmp_path / "checkpoint")
    config = fixture.config
    deeper = vlm(config, depth=config.vlm.depth + 1)
    wider = dataclasses.replace(
        config, siglip=dataclasses.replace(config.siglip, width=config.siglip.width * 2)
    )
    for other, message in (
        (deeper, f"vlm.depth {config.vlm.depth} instead of {config.vlm.depth + 1}"),
        (wider, f"siglip.width {config.siglip.width} instead of {config.siglip.width * 2}"),
        (vlm(config, mlp_dim=7), f"vlm.mlp_dim {config.vlm.mlp_dim} instead of 7"),
    ):
        with pytest.raises(pretrained.MismatchError, match=message):
            pretrained.load(path, other)


def test_larger_action_dim_is_an_error(openpi):
    config = dataclasses.replace(openpi.config, action_dim=openpi.config.action_dim + 1)
    with pytest.raises(
        pretrained.MismatchError, match=f"action_dim {config.action_dim - 1} instead of"
    ):
        pretrained.load(openpi.folder / "checkpoint", config)


def test_position_table_is_resized(fixture, tmp_path):
    path = fixture.write(fixture.arrays(), tmp_path / "checkpoint")
    tower = fixture.config.siglip
    larger = dataclasses.replace(tower, image_size=tower.image_size + 2 * tower.patch)
    params, actual = pretrained.load(path, dataclasses.replace(fixture.config, siglip=larger))
    same = pretrained.load(path, fixture.config)[0]["img"]["pos_embedding"]
    np.testing.assert_array_equal(
        params["img"]["pos_embedding"], resize_positions(same, larger.tokens)
    )
    assert f"resized from {tower.tokens} to {larger.tokens} image tokens" in str(actual)


def test_error_names_a_file_that_is_not_a_checkpoint(hf, tmp_path):
    with pytest.raises(UserError, match="nowhere holds no released checkpoint"):
        pretrained.load(tmp_path / "nowhere", CONFIG)
    path = hf.write(hf.arrays(), tmp_path / "hf") / "model.safetensors"
    data = path.read_bytes()
    for content, message in (
        (data[:-9], f"has {len(data) - 9} bytes, its header describes {len(data)}"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a safetensors file"),
        (data[:8] + b"x" * len(data), "its header is not JSON"),
        (b"", "is not a safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"model.safetensors.*{message}"):
            pretrained.load(path.parent, hf.config)
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"x.npz is not an .npz"):
        pretrained.load(tmp_path / "x.npz", CONFIG)
    for config, message in (
        ({"model_type": "llama"}, "describes a 'llama' model .*, expected 'paligemma'"),
        (
            {"model_type": "paligemma", "text_config": {"rope_parameters": {"rope_theta": 1e6}}},
            "text_config.rope_theta is 1000000.0, expected 10000.0",
        ),
    ):
        (path.parent / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"config.json:? {message}"):
            pretrained.load(path.parent, hf.config)


# Export


def test_export_equals_the_released_file(tmp_path):
    """For PaliGemma 1 and 2: names, shapes and numbers equal those of the fixture."""
    for number, folder in enumerate(models("paligemma_hf")):
        expected = {
            released_names(name): tensor
            for name, tensor in read_safetensors(folder / "model.safetensors").items()
        }
        table = "language_model.model.embed_tokens.weight"
        config = load_paligemma(folder).model.config
        config = dataclasses.replace(config, vocab_size=config.vocab_size - 64)
        params, _ = pretrained.load(folder, config)
        pretrained.export_hugging_face(params, config, tmp_path / f"{number}")
        actual = read_safetensors(tmp_path / f"{number}" / "model.safetensors")
        np.testing.assert_allclose(
            actual[table][-64:], expected[table][:-64].mean(0)[None].repeat(64, 0), atol=1e-6
        )
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert actual[name].shape == tensor.shape
            end = -64 if name == table else None
            np.testing.assert_array_equal(actual[name][:end], tensor[:end], err_msg=name)
        theirs, ours = (
            json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / f"{number}")
        )
        for part in ("text_config", "vision_config"):
            shared = ours[part].keys() & theirs[part].keys()
            assert {key: ours[part][key] for key in shared} == {
                key: theirs[part][key] for key in shared
            }


@pytest.mark.parametrize("fields", [{}, GEMMA2], ids=["gemma", "gemma2"])
def test_sharded_export_loads(fields, tmp_path):
    model = VLA(vlm(CONFIG, **fields))
    params = random_params(model)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in (
        "tokenizer.json",
        "preprocessor_config.json",
        "tokenizer.model",
        "model.safetensors",
        "config.json",
    ):
        (tokenizer / name).write_text(name)
    pretrained.export_hugging_face(
        params, model.config, tmp_path / "hf", tokenizer, shard_bytes=10_000
    )
    files = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"tokenizer.json", "preprocessor_config.json", "tokenizer.model"} < files
    assert (
        "model.safetensors" not in files
        and "model-00002-of-" in str(files)
        and "paligemma" in (tmp_path / "hf" / "config.json").read_text()
    )
    backbone = {
        name: leaf for name, leaf in flatten_dict(params, sep="/").items() if is_backbone(name)
    }
    assert_same(pretrained.load(tmp_path / "hf", model.config)[0], backbone)


@pytest.mark.parametrize("fields", [{}, GEMMA2], ids=["gemma", "gemma2"])
def test_transformers_computes_the_same_logits_from_an_export(fields, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = VLA(dataclasses.replace(vlm(CONFIG, **fields), image_attends_prompt=True))
    params = random_params(model)
    pretrained.export_hugging_face(params, model.config, tmp_path / "hf", shard_bytes=10_000)
    theirs, report = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True, attn_implementation="eager"
    )
    assert (
        not report["missing_keys"]
        and not report["unexpected_keys"]
        and not report["mismatched_keys"]
    )
    rng = np.random.default_rng(0)
    images = CONFIG.siglip.tokens
    length = 9
    text = rng.integers(3, CONFIG.vocab_size, (2, length))
    target = np.arange(length)[None].repeat(2, 0) >= 4
    pixels = rng.integers(
        0, 256, (2, 1, CONFIG.siglip.image_size, CONFIG.siglip.image_size, 3)
    ).astype(np.uint8)
    batch = {
        "images": pixels,
        "image_mask": np.ones((2, 1), bool),
        "tokens": text,
        "target": target,
        "segment": np.ones_like(text),
    }
    with jax.default_matmul_precision("highest"):
        ours, _ = model.apply(
            {"params": params}, batch, np.arange(1, length)[None].repeat(2, 0), None, None
        )
    ids = np.concatenate([np.full((2, images), CONFIG.vocab_size), text], axis=1)
    types = np.concatenate([np.zeros((2, images), int), target], axis=1)
    with torch.no_grad():
        actual = theirs(
            input_ids=torch.from_numpy(ids),
            token_type_ids=torch.from_numpy(types),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            pixel_values=torch.from_numpy(
                pixels[:, 0].transpose(0, 3, 1, 2) / np.float32(127.5) - 1
            ),
        )
    np.testing.assert_allclose(actual.logits[:, images:-1, : CONFIG.vocab_size], ours, atol=2e-4)


def test_export_of_an_unknown_gemma_is_an_error(tmp_path):
    model = make_model(vlm=dataclasses.replace(CONFIG.vlm, attn_softcap=5.0))
    with pytest.raises(ValueError, match="no gemma has vlm.attn_softcap = 5.0"):
        pretrained.export_hugging_face(random_params(model), model.config, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", models("pi0", "pi05"), ids=lambda folder: folder.name)
def test_openpi_export_has_the_tree_of_openpi(folder, tmp_path):
    openpi = load_openpi(folder)
    theirs = pretrained.find(folder / "checkpoint")
    assets = next((folder / "checkpoint").rglob("norm_stats.json"))
    stats = json.loads(assets.read_text())["norm_stats"]
    pretrained.export_openpi(
        openpi.params, openpi.model.config, tmp_path / "out", {assets.parent.name: stats}
    )
    assert_same(pretrained.load(tmp_path / "out", openpi.model.config)[0], openpi.params)
    written = pretrained.find(tmp_path / "out")
    assert written.path == tmp_path / "out" / "params"
    assert {tensor.path for tensor in written.tensors.values()} == {
        t.path for t in theirs.tensors.values()
    }
    copy = json.loads(
        (tmp_path / "out" / "assets" / assets.parent.name / "norm_stats.json").read_text()
    )
    assert copy["norm_stats"].keys() == stats.keys()
    for name, fields in stats.items():
        assert copy["norm_stats"][name] == {
            key: fields[key] for key in ("mean", "std", "q01", "q99")
        }


def test_exports_merge_adapters(tmp_path):
    rules = (("llm/layers/attn/.*", 2), (".*", 0))
    model = make_model(state="text", lora=rules, lora_scale=0.5)
    params = random_params(model)
    merged = flatten_dict(merge(params, model.config.adapters), sep="/")
    bare = dataclasses.replace(model.config, lora=())
    pretrained.export_openpi(params, model.config, tmp_path / "openpi")
    assert_same(pretrained.load(tmp_path / "openpi", bare)[0], merged)
    pretrained.export_hugging_face(params, model.config, tmp_path / "hf")
    backbone = {name: leaf for name, leaf in merged.items() if is_backbone(name)}
    assert_same(pretrained.load(tmp_path / "hf", bare)[0], backbone)
    actual = pretrained.load(tmp_path / "openpi", model.config)[
        1
    ]  # adapters that the checkpoint lacks are fresh
    assert (
        actual.fresh.keys() == flatten_dict(params, sep="/").keys() - merged.keys() and actual.fresh
    )


def test_export_of_a_model_unknown_to_openpi_is_an_error(tmp_path):
    assert CONFIG.state == "token" and CONFIG.expert.adaptive
    with pytest.raises(ValueError, match="pi0 has 'token' and False, pi0.5 'text' and True"):
        pretrained.export_openpi(random_params(make_model()), CONFIG, tmp_path / "out")


def test_failed_export_leaves_no_directory(tmp_path, monkeypatch):
    params = random_params(make_model())
    pretrained.export_hugging_face(params, CONFIG, tmp_path / "hf")
    with pytest.raises(UserError, match="hf exists already"):
        pretrained.export_hugging_face(params, CONFIG, tmp_path / "hf")
    shutil.rmtree(tmp_path / "hf")
    (tmp_path / "hf.partial").mkdir()  # left by an export that was killed
    (tmp_path / "hf.partial" / "model-00009-of-00009.safetensors").write_text("old")

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as m, pytest.raises(OSError, match="No space left"):
        m.setattr(pretrained.hugging_face.safetensors, "write", full)
        pretrained.export_hugging_face(params, CONFIG, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


# Memory

BIG = dataclasses.replace(
    CONFIG,
    vocab_size=40_000,
    state="text",
    vlm=dataclasses.replace(CONFIG.vlm, width=768, mlp_dim=4096, depth=4, head_dim=64),
    expert=dataclasses.replace(CONFIG.expert, width=384, mlp_dim=2048, depth=4, head_dim=64),
)
MEASURE = """
import jax
from etcvla.models import pretrained
from etcvla.models.lora import merge
from etcvla.models.pretrained import layout
from tests.models.test_pretrained import BIG

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if
    line.startswith(field))

pretrained.parameter_shapes(BIG)  # imports the libraries, whose memory does not count
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
params, _ = pretrained.load({path!r}, BIG)
print((status("VmHWM") - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Create checkpoints of at least 300 MB in every format."""
    folder = tmp_path_factory.mktemp("big")
    rng = np.random.default_rng(0)
    params = {
        name: rng.random(shape, np.float32)
        for name, shape in pretrained.parameter_shapes(BIG).items()
    }
    np.savez(
        folder / "big_vision.npz",
        **{name: leaf for name, leaf in params.items() if is_backbone(name)},
    )
    pretrained.export_hugging_face(unflatten_dict(params, sep="/"), BIG, folder / "hugging_face")
    pretrained.export_openpi(unflatten_dict(params, sep="/"), BIG, folder / "openpi")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["hugging_face", "big_vision.npz", "openpi"])
def test_loading_needs_little_more_memory_than_the_parameters(big, name):
    code = MEASURE.format(path=str(big / name))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ratio = float(out.stdout.splitlines()[-1])
    print(f"{name}: peak {ratio:.2f} x the parameters")
    assert 0.9 < ratio < 1.3
