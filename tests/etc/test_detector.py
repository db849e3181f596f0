"""The object detector: its choice of a box, and a tiny random OWL-ViT in transformers."""

import string
import sys
import types

import numpy as np
import pytest

from etcvla.errors import UserError
from etcvla.etc.annotators.cache import AnswerCache
from etcvla.etc.annotators.detector import Detector, best_box

BOX = [0.1, 0.2, 0.5, 0.6]
ELSEWHERE = [0.7, 0.7, 0.9, 0.9]


def test_the_box_with_the_best_score_is_chosen():
    best = [0.1, 0.2, 0.5, 0.7]
    detections = np.array([[0.5, *BOX], [0.9, *best], [0.3, *ELSEWHERE]])
    assert best_box(detections).tolist() == best


@pytest.mark.parametrize(
    "detections",
    [
        pytest.param(np.zeros((0, 5)), id="none"),
        pytest.param(np.array([[0.9, *BOX], [0.8, *ELSEWHERE]]), id="ambiguous"),
        pytest.param(np.array([[0.9, 0.5, 0.2, 0.5, 0.6]]), id="empty"),
    ],
)
def test_no_ambiguous_or_empty_box_is_chosen(detections):
    assert np.isnan(best_box(detections)).all()


def _fake_transformers(results, model_type):
    """Return a module `transformers` whose pipeline returns `results` for every image."""

    class Pipeline:
        model = types.SimpleNamespace(config=types.SimpleNamespace(model_type=model_type))

        def __call__(self, image, candidate_labels, threshold):
            return [result for result in results if result["label"] in candidate_labels]

    return types.SimpleNamespace(pipeline=lambda *_, **__: Pipeline())


@pytest.mark.parametrize(("model_type", "label"), [("owlvit", "cup"), ("grounding-dino", "cup.")])
def test_pixels_of_a_detection_become_a_box(monkeypatch, tmp_path, model_type, label):
    pixels = {"xmin": 8, "ymin": 6, "xmax": 24, "ymax": 30}
    results = [{"label": label, "score": 0.9, "box": pixels}]
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "transformers", _fake_transformers(results, model_type))
    detector = Detector("any", cache=AnswerCache(tmp_path))
    boxes = detector(np.zeros((24, 40, 3), np.uint8), ("cup", "plate"))
    np.testing.assert_allclose(boxes[0], [0.25, 0.2, 1.0, 0.6])  # clipped to the image
    assert np.isnan(boxes[1]).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Directory of a random OWL-ViT: 32 px, 4 patches, a vocabulary of letters."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    letters = string.ascii_lowercase
    # OWL-ViT interprets a query that begins with token 0 as padding.
    tokens = ["!", "<|startoftext|>", "<|endoftext|>", *letters]
    tokens += [letter + "</w>" for letter in letters]
    tokenizer = transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16
    )
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    text_config = {
        **sizes,
        "vocab_size": len(tokens),
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = transformers.OwlViTConfig(
        text_config=text_config,
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


@pytest.fixture
def image():
    """A random image."""
    return np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)


def test_detections_are_inside_the_image(model, image, tmp_path):
    detector = Detector(str(model), cache=AnswerCache(tmp_path), threshold=0.0)
    detections = detector._detect(image, ("cup", "plate"))
    assert detections
    for noun, *numbers in detections:
        assert noun in ("cup", "plate")
        assert all(0 <= value <= 1 for value in numbers)


def test_boxes_are_complete_or_unknown(model, image, tmp_path):
    detector = Detector(str(model), cache=AnswerCache(tmp_path), threshold=0.0)
    boxes = detector(image, ("cup", "plate"))
    assert boxes.shape == (2, 4)
    known = np.isfinite(boxes).all(-1)
    assert (known == np.isfinite(boxes).any(-1)).all()
    assert (boxes[known, 2:] > boxes[known, :2]).all()


def test_detections_are_cached(model, image, tmp_path):
    detector = Detector(str(model), cache=AnswerCache(tmp_path), threshold=0.0)
    boxes = detector(image, ("cup", "plate"))
    detector._pipeline = None
    np.testing.assert_array_equal(detector(image, ("cup", "plate")), boxes)
    with pytest.raises(TypeError):
        detector(image + 1, ("cup", "plate"))


def test_the_error_without_torch_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"etcvla\[annotate\]"):
        Detector("any", cache=AnswerCache(tmp_path))
