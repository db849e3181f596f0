"""Segments: what the model reads and writes, word for word."""

import numpy as np
import pytest

from etcvla.data import prompts
from etcvla.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load()


def test_a_question_and_its_answer(tokenizer):
    asked = prompts.question(tokenizer, "where is the door?", "<loc0012><loc1023>")
    assert asked.prompt[0] == tokenizer.layout.bos and asked.target[-1] == tokenizer.layout.eos
    assert tokenizer.decode(asked.prompt) == "where is the door?\n"
    assert tokenizer.decode(asked.target) == "<loc0012><loc1023>" and len(asked.target) == 3
    assert len(asked) == len(asked.prompt) + len(asked.target)


def test_acting_asks_as_training_did(tokenizer):
    """What a policy puts before an answer, or an action, is what stood before it in training."""
    trained = prompts.question(tokenizer, "what is red?", "the door")
    assert prompts.question(tokenizer, "what is red?") == (trained.prompt, [])
    state = np.float32([0.2, -1])
    for options in ({}, {"state": state}):
        trained = prompts.action(tokenizer, "open the door", fast=[1, 2], **options)
        assert prompts.action(tokenizer, "open the door", **options) == (trained.prompt, [])


def test_an_action_prompt_is_pi0s(tokenizer):
    made = prompts.action(tokenizer, " open_the\ndoor ", fast=[0, 7])
    assert tokenizer.decode(made.prompt) == "open the door\n"
    assert tokenizer.action_tokens(made.target[:-1]) == [0, 7] and made.target[-1] == tokenizer.layout.eos


def test_with_the_state_in_it_is_pi05s(tokenizer):
    made = prompts.action(tokenizer, "open the door", state=np.float32([-1, 0, 1]))
    assert tokenizer.decode(made.prompt) == "Task: open the door, State: 0 128 255;\nAction: "


def test_state_bins_are_openpis():
    # openpi: np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1, so what lies below all edges is -1
    assert prompts.state_bins(np.float32([-1.01, -1, -0.9922, -0.99, 0.9921875, 0.99, 5])) == "-1 0 0 1 255 254 255"
