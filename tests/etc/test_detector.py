"""The detector of objects: its choice among boxes, and a tiny random OWL-ViT through transformers' own pipeline."""

import sys

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.detector import Detector, best_box

BOX = [0.1, 0.2, 0.5, 0.6]


def test_the_best_box_is_taken():
    assert best_box(
        np.array([[0.5, *BOX], [0.9, 0.1, 0.2, 0.5, 0.7], [0.3, 0.7, 0.7, 0.9, 0.9]])
    ).tolist() == [0.1, 0.2, 0.5, 0.7]


@pytest.mark.parametrize(
    "found",
    [
        np.zeros((0, 5)),
        np.array([[0.9, *BOX], [0.8, 0.7, 0.7, 0.9, 0.9]]),
        np.array([[0.9, 0.5, 0.2, 0.5, 0.6]]),
    ],
)
def test_nothing_two_places_and_no_area_are_unknown(found):
    assert np.isnan(best_box(found)).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of a random OWL-ViT: 32 px, 4 patches, a vocabulary of letters."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    # OWL-ViT takes a query that begins with token 0 for padding.
    tokens = [
        "!",
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(letter + "</w>" for letter in letters),
    ]
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16
    )
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = transformers.OwlViTConfig(
        text_config={
            **sizes,
            "vocab_size": len(tokens),
            "max_position_embeddings": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    path = tmp_path_factory.mktemp("owlvit")
    transformers.OwlViTForObjectDetection(config).save_pretrained(path)
    images = transformers.OwlViTImageProcessor(
        size={"height": 32, "width": 32}, do_center_crop=False
    )
    transformers.OwlViTProcessor(images, tokenizer).save_pretrained(path)
    return path


def test_a_random_model_answers_within_the_image_and_once(model, tmp_path):
    detector = Detector(str(model), cache=AnswerCache(tmp_path), threshold=0.0)
    image = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    found = detector._detect(image, ("cup", "plate"))
    assert {noun for noun, *_ in found} <= {"cup", "plate"}
    assert len(found) > 0
    assert all(0 <= value <= 1 for _, *numbers in found for value in numbers)
    boxes = detector(image, ("cup", "plate"))
    assert boxes.shape == (2, 4)
    known = np.isfinite(boxes).all(-1)
    assert (known == np.isfinite(boxes).any(-1)).all()
    assert (boxes[known, 2:] > boxes[known, :2]).all()
    detector._pipeline = None  # whatever is asked again is not computed again
    np.testing.assert_array_equal(detector(image, ("cup", "plate")), boxes)
    with pytest.raises(TypeError):
        detector(image + 1, ("cup", "plate"))


def test_without_torch_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"etcvla\[annotate\]"):
        Detector("any", cache=AnswerCache(tmp_path))
