"""The tabletop builder: roles, words, relabels, and a small build."""

import numpy as np
import pytest

from configs import common
from data_builders.tabletop_etc.episodes import HORIZON, absent_names, make_episode
from data_builders.tabletop_etc.tabletop_etc_dataset_builder import Builder, TabletopConfig
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError
from etcvla.etc.items import ETC_KINDS
from etcvla.etc.verify import check
from etcvla.sims.tabletop.layouts import NUM_OBJECTS
from etcvla.sims.tabletop.words import left_out_pairs, tier_words
from tests.data_builders.command import run_command

SIZE = 48
ITEM_FIELDS = ["etc/kind", "etc/question", "etc/answer"]


def config(**changes):
    return TabletopConfig(**({"episodes": 4, "held_out": 0.25, "image_size": SIZE} | changes))


@pytest.fixture(scope="module")
def results():
    """role -> the first four results."""
    results = {}
    for role in ("demos", "etc", "ood"):
        results[role] = [make_episode(job) for job in config(role=role).jobs()[:4]]
    return results


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The version folder of a small dataset of demonstrations."""
    out = tmp_path_factory.mktemp("datasets")
    run_command(
        "data_builders.tabletop_etc",
        "--role=demos",
        "--episodes=3",
        "--held_out=0.3",
        f"--image_size={SIZE}",
        "--workers=1",
        f"--out={out}",
        f"--gallery={out}/page.html",
    )
    return out / "tabletop_etc" / f"demos_r0_3ep_heldout0.3_{SIZE}px" / "1.0.0"


def test_roles_have_the_words_of_their_tiers(results):
    for role, tiers in (("demos", "A"), ("etc", "AB"), ("ood", "AN")):
        nouns = set()
        for tier in tiers:
            nouns.update(tier_words(tier, 0).nouns)
        for result in results[role]:
            assert set(result.episode.annotation.shapes) <= nouns
    assert [result.job.scene for result in results["ood"]] == ["A0", "N0", "A0", "N0"]


def test_demonstrations_leave_pairs_out():
    names = absent_names("demos", 1)
    words = tier_words("A", 1)
    assert len(names) == len(words.nouns) * len(words.colors) - len(left_out_pairs(1))
    for noun, color in left_out_pairs(1):
        assert f"{color} {noun}" not in names


def test_roles_share_no_layout():
    seeds = []
    for role in ("demos", "etc", "ood"):
        jobs = config(role=role, episodes=50).jobs()
        seeds += [job.seed(attempt) // NUM_OBJECTS for job in jobs for attempt in range(3)]
    assert len(set(seeds)) == len(seeds)


def test_any_object_is_named():
    jobs = config(episodes=50).jobs()
    named = [job.seed(0) % NUM_OBJECTS for job in jobs[:50]]
    np.testing.assert_array_equal(np.bincount(named), 10)


def test_items_of_all_kinds_follow_from_the_annotation(results):
    for role_results in results.values():
        kinds = set()
        for result in role_results:
            annotation = result.episode.annotation
            assert annotation.has_exact_names
            for step, items in enumerate(result.items):
                assert not any(check(item, annotation, step) for item in items)
                kinds.update(item.kind for item in items)
        assert kinds == set(ETC_KINDS)


def test_absent_objects_may_share_a_word_with_present_ones(results):
    asked = set()
    for result in results["demos"]:
        words = set(" ".join(result.episode.annotation.objects).split())
        for items in result.items:
            for item in items:
                if item.question_type == "present" and item.answer == "no":
                    asked.add(any(word in item.question.rstrip(".?").split() for word in words))
    assert True in asked


def test_only_demonstrations_have_actions_and_relabels(results):
    for role, role_results in results.items():
        for result in role_results:
            has_actions = role == "demos"
            assert (result.episode.action is not None) == has_actions
            assert (result.episode.relabels is not None) == has_actions


def test_relabels_lead_to_the_other_objects(results):
    for result in results["demos"]:
        relabels = result.episode.relabels
        annotation = result.episode.annotation
        steps = len(annotation)
        assert relabels.actions.shape == (steps, NUM_OBJECTS - 1, HORIZON, 4)
        assert relabels.valid.shape == (steps, NUM_OBJECTS - 1)
        assert (relabels.valid[:-1] > 0).all()
        assert (relabels.valid[-1] == 0).all()
        others = [name for name in annotation.objects if name not in annotation.instruction]
        for name, instruction in zip(others, relabels.instruction, strict=True):
            assert instruction.endswith(name)
        goals = np.delete(annotation.position[0], annotation.target, axis=0)
        moved = relabels.actions[0, :, :, :2].sum(1)  # in units of 2 cm
        reached = annotation.gripper_position[0, :2] + 0.02 * moved
        is_complete = relabels.valid[0] < HORIZON
        np.testing.assert_allclose(reached[is_complete], goals[is_complete, :2], atol=0.005)


def test_episode_depends_on_its_job_alone():
    jobs = config().jobs()
    first = make_episode(jobs[1])
    make_episode(jobs[3])
    again = make_episode(jobs[1])
    np.testing.assert_array_equal(first.episode.action, again.episode.action)
    assert first.items == again.items


def test_reader_reads_actions_items_and_relabels(built):
    for split, count in (("train", 3), ("val", 1)):
        dataset = RLDSDataset(built, split)
        assert len(dataset.lengths) == count
        names = ["action", "relabels/instruction", "relabels/actions", "relabels/valid"]
        frame = dataset.frame(0, [*names, *ITEM_FIELDS])
        assert frame["action"].shape == (4,)
        assert frame["relabels/actions"].shape == (NUM_OBJECTS - 1, HORIZON, 4)
        assert frame["relabels/valid"].shape == (NUM_OBJECTS - 1,)
        assert len(frame["relabels/instruction"]) == NUM_OBJECTS - 1
        assert set(frame["etc/kind"]) <= set(ETC_KINDS)
        assert dataset.metadata(0)["scene"] == "A0"


def test_gallery_shows_the_frames(built):
    page = (built.parents[2] / "page.html").read_text()
    assert "tabletop/demos/A0/touch/000000" in page


def test_every_role_has_a_default_config():
    names = [config.name for config in Builder.BUILDER_CONFIGS]
    assert names == ["demos_r0", "etc_r0", "ood_r0"]


@pytest.mark.parametrize("role", ["demos", "etc", "ood"])
@pytest.mark.parametrize("rotation", [0, 3])
@pytest.mark.parametrize("episodes", [0, 200, 1200])
def test_config_and_builder_agree_on_the_dataset_name(role, rotation, episodes):
    path = common.tabletop(role, rotation, episodes=episodes)["path"]
    name = TabletopConfig(role=role, rotation=rotation, episodes=episodes).name
    assert path == f"data/tabletop_etc/{name}"


def test_other_tasks_have_no_relabels():
    assert TabletopConfig().has_relabels
    assert not TabletopConfig(tasks=("touch", "push-left")).has_relabels
    assert not TabletopConfig(role="etc").has_relabels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "demo"}, "unknown role 'demo', did you mean 'demos'"),
        ({"rotation": -1}, "rotation must be at least 0"),
        ({"tasks": ("tuch",)}, "did you mean 'touch'"),
        ({"noise": (0.3, 0.1)}, "must be an ascending range"),
    ],
)
def test_wrong_fields_are_errors(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)
