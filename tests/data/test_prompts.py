"""Segments: what the model reads and writes, word for word."""

import numpy as np
import pytest

from etcvla.data import prompts
from etcvla.data.tokenizer import Tokenizer
from etcvla.models.fast import FAST

STATE = np.float32([-1, 0, 1])
TASK = " Open_the\nDoor "
# What openpi's tokenizers write of this task and state, and (the last two) what stands in its place with subtasks.
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


def test_a_question_and_its_answer(tokenizer):
    asked = prompts.question(tokenizer, "where is the door?", "<loc0012><loc1023>")
    assert asked.prompt[0] == tokenizer.layout.bos and asked.target[-1] == tokenizer.layout.eos
    assert tokenizer.decode(asked.prompt) == "where is the door?\n"
    assert tokenizer.decode(asked.target) == "<loc0012><loc1023>" and len(asked.target) == 3
    assert len(asked) == len(asked.prompt) + len(asked.target)


def test_every_format_is_tested():
    assert EXPECTED.keys() == prompts.FORMATS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_format_word_for_word(tokenizer, name):
    made = prompts.action(tokenizer, TASK, prompt=name, state=STATE, subtask=" grasp_the\nhandle")
    assert tokenizer.decode(made.prompt) == EXPECTED[name]
    assert made.prompt[0] == tokenizer.layout.bos and made.target == []


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_learnt_of_actions(tokenizer, name):
    """eos ends them; pi0-FAST also writes what stands around them, each part encoded on its own."""
    fast = [0, 7, 100]
    made = prompts.action(tokenizer, TASK, prompt=name, state=STATE, subtask="grasp", fast=fast)
    ids, eos = tokenizer.action_ids(fast), tokenizer.layout.eos
    expected = (
        [*tokenizer.encode("Action: "), *ids, *tokenizer.encode("|"), eos]
        if name == "pi0_fast"
        else [*ids, eos]
    )
    assert made.target == expected
    assert prompts.read_action(tokenizer, [*expected, 0, 0], prompt=name) == fast
    assert prompts.read_action(tokenizer, np.int32(expected), prompt=name) == fast
    assert set(expected) <= set(prompts.action_vocabulary(tokenizer, prompt=name, fast_vocab=101))


def test_what_begins_otherwise_is_no_action(tokenizer):
    fast = FAST.fit(np.random.default_rng(0).uniform(-1, 1, (50, 4, 2)), vocab_size=200)
    ids = tokenizer.action_ids([1, 2])
    for written in (ids, [*tokenizer.encode("Task: "), *ids], []):
        found = prompts.read_action(tokenizer, written, prompt="pi0_fast")
        assert found == [] and not fast.decode(found).ok
    assert prompts.read_action(tokenizer, [*ids, *tokenizer.encode("no"), *ids], prompt="pi0") == [
        1,
        2,
    ]


def test_nothing_else_is_in_an_actions_vocabulary(tokenizer):
    allowed = prompts.action_vocabulary(tokenizer, prompt="pi0", fast_vocab=3)
    assert allowed == [tokenizer.layout.eos, *tokenizer.action_ids([0, 1, 2])]
    framed = prompts.action_vocabulary(tokenizer, prompt="pi0_fast", fast_vocab=3)
    assert set(framed) - set(allowed) == {*tokenizer.encode("Action: "), *tokenizer.encode("|")}


def test_subtasks_are_asked_for(tokenizer):
    made = prompts.subtask(tokenizer, TASK, prompt="pi05_subtask", answer="grasp the handle")
    assert tokenizer.decode(made.prompt) == "Task: Open the Door. Subtask: "
    assert (
        tokenizer.decode(made.target) == "grasp the handle"
        and made.target[-1] == tokenizer.layout.eos
    )
    asked = prompts.subtask(tokenizer, TASK, prompt="subtask", state=STATE)
    assert tokenizer.decode(asked.prompt) == "Task: Open the Door, State: 0 128 255;\nSubtask: "
    told = prompts.action(tokenizer, TASK, prompt="subtask", state=STATE, subtask="grasp")
    assert (
        told.prompt[: len(asked.prompt) - 1] == asked.prompt[:-1]
    )  # the last piece may join what follows


def test_acting_asks_as_training_did(tokenizer):
    """What a policy puts before an answer, or an action, is what stood before it in training."""
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
def test_what_a_format_lacks_is_named(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        prompts.action(tokenizer, "open the door", **options)


def test_a_format_without_subtasks_is_told(tokenizer):
    with pytest.raises(
        ValueError, match="prompt 'pi0' has no subtasks; choose from pi05_subtask, subtask"
    ):
        prompts.subtask(tokenizer, "open the door", prompt="pi0")


def test_state_bins_are_openpis():
    # openpi: np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1, so what lies below all edges is -1
    assert (
        prompts.state_bins(np.float32([-1.01, -1, -0.9922, -0.99, 0.9921875, 0.99, 5]))
        == "-1 0 0 1 255 254 255"
    )
