"""The text of the segments that the model reads and writes."""

import numpy as np
import pytest

from etcvla.data import prompts
from etcvla.data.tokenizer import Tokenizer
from etcvla.models.fast import FAST

STATE = np.float32([-1, 0, 1])
TASK = " Open_the\nDoor "
# The prompts of openpi's tokenizers for this task and state, and of the formats with subtasks.
EXPECTED = {
    "pi0": "Open the Door\n",
    "pi05": "Task: Open the Door, State: 0 128 255;\nAction: ",
    "pi0_fast": "Task: open the\ndoor, State: 0 128 255;\n",
    "pi05_subtask": "Task: grasp the handle, State: 0 128 255;\nAction: ",
    "subtask": "Task: Open the Door, State: 0 128 255;\nSubtask: grasp the handle;\nAction: ",
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load()


def test_question_segment(tokenizer):
    segment = prompts.question(tokenizer, "where is the door?", "<loc0012><loc1023>")
    assert segment.prompt[0] == tokenizer.layout.bos and segment.target[-1] == tokenizer.layout.eos
    assert tokenizer.decode(segment.prompt) == "where is the door?\n"
    assert tokenizer.decode(segment.target) == "<loc0012><loc1023>" and len(segment.target) == 3
    assert len(segment) == len(segment.prompt) + len(segment.target)


def test_every_format_is_tested():
    assert EXPECTED.keys() == prompts.FORMATS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_prompt_text_of_each_format(tokenizer, name):
    segment = prompts.action(
        tokenizer, TASK, prompt=name, state=STATE, subtask=" grasp_the\nhandle"
    )
    assert tokenizer.decode(segment.prompt) == EXPECTED[name]
    assert segment.prompt[0] == tokenizer.layout.bos and segment.target == []


@pytest.mark.parametrize("name", EXPECTED)
def test_action_targets_of_each_format(tokenizer, name):
    """FAST tokens and eos; pi0-FAST also has an opening and a closing, encoded separately."""
    fast = [0, 7, 100]
    segment = prompts.action(tokenizer, TASK, prompt=name, state=STATE, subtask="grasp", fast=fast)
    ids = tokenizer.action_ids(fast)
    eos = tokenizer.layout.eos
    expected = (
        [*tokenizer.encode("Action: "), *ids, *tokenizer.encode("|"), eos]
        if name == "pi0_fast"
        else [*ids, eos]
    )
    assert segment.target == expected
    assert prompts.read_action(tokenizer, [*expected, 0, 0], prompt=name) == fast
    assert prompts.read_action(tokenizer, np.int32(expected), prompt=name) == fast
    assert set(expected) <= set(prompts.action_vocabulary(tokenizer, prompt=name, fast_vocab=101))


def test_read_action_rejects_other_openings(tokenizer):
    fast = FAST.fit(np.random.default_rng(0).uniform(-1, 1, (50, 4, 2)), vocab_size=200)
    ids = tokenizer.action_ids([1, 2])
    for written in (ids, [*tokenizer.encode("Task: "), *ids], []):
        found = prompts.read_action(tokenizer, written, prompt="pi0_fast")
        assert found == [] and not fast.decode(found).ok
    assert prompts.read_action(tokenizer, [*ids, *tokenizer.encode("no"), *ids], prompt="pi0") == [
        1,
        2,
    ]


def test_action_vocabulary_contains_only_action_targets(tokenizer):
    allowed = prompts.action_vocabulary(tokenizer, prompt="pi0", fast_vocab=3)
    assert allowed == [tokenizer.layout.eos, *tokenizer.action_ids([0, 1, 2])]
    framed = prompts.action_vocabulary(tokenizer, prompt="pi0_fast", fast_vocab=3)
    assert set(framed) - set(allowed) == {*tokenizer.encode("Action: "), *tokenizer.encode("|")}


def test_subtask_segment(tokenizer):
    segment = prompts.subtask(tokenizer, TASK, prompt="pi05_subtask", answer="grasp the handle")
    assert tokenizer.decode(segment.prompt) == "Task: Open the Door. Subtask: "
    assert (
        tokenizer.decode(segment.target) == "grasp the handle"
        and segment.target[-1] == tokenizer.layout.eos
    )
    segment = prompts.subtask(tokenizer, TASK, prompt="subtask", state=STATE)
    assert tokenizer.decode(segment.prompt) == "Task: Open the Door, State: 0 128 255;\nSubtask: "
    action = prompts.action(tokenizer, TASK, prompt="subtask", state=STATE, subtask="grasp")
    # The last token may be merged with the text that follows.
    assert action.prompt[: len(segment.prompt) - 1] == segment.prompt[:-1]


def test_inference_prompts_equal_training_prompts(tokenizer):
    """A policy's prompt of an answer or an action equals the one in training."""
    trained = prompts.question(tokenizer, "what is red?", "the door")
    assert prompts.question(tokenizer, "what is red?") == (trained.prompt, [])
    for name in prompts.FORMATS:
        options = {"prompt": name, "state": STATE, "subtask": "grasp"}
        trained = prompts.action(tokenizer, "open the door", fast=[1, 2], **options)
        assert prompts.action(tokenizer, "open the door", **options) == (trained.prompt, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "pi0.5"}, "unknown data.prompt 'pi0.5', did you mean 'pi05'"),
        ({"prompt": "pi05"}, "prompt 'pi05' contains the state, but none was given"),
        (
            {"prompt": "subtask", "state": STATE},
            "prompt 'subtask' contains the subtask, but none was given",
        ),
    ],
)
def test_errors_name_what_a_format_needs(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        prompts.action(tokenizer, "open the door", **options)


def test_subtask_segment_of_format_without_subtasks_raises(tokenizer):
    with pytest.raises(
        ValueError, match="prompt 'pi0' has no subtasks; choose from pi05_subtask, subtask"
    ):
        prompts.subtask(tokenizer, "open the door", prompt="pi0")


def test_state_bins_equal_openpi():
    # openpi: np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1; a value below all edges is -1.
    assert (
        prompts.state_bins(np.float32([-1.01, -1, -0.9922, -0.99, 0.9921875, 0.99, 5]))
        == "-1 0 0 1 255 254 255"
    )
