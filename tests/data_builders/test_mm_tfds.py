"""Importer of image-text datasets that TFDS has prepared."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_builders.common.build import prepare
from data_builders.common.read_dataset import read_items
from data_builders.mm_tfds.mm_tfds_dataset_builder import Builder, TfdsConfig
from etcvla.data.rlds import RLDSDataset
from etcvla.errors import UserError


class ToyCaptions(tfds.core.GeneratorBasedBuilder):
    """Image-text dataset of TFDS with several answers per question."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(),
            "asked": tfds.features.Text(),
            "said": {"answers": tfds.features.Sequence(tfds.features.Text())},
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, answers in enumerate((["a cup", "a mug", "a mug"], ["a dish"], [])):
            example = {
                "picture": np.full((8, 9, 3), 40 * i, np.uint8),
                "asked": f"what is {i}?",
                "said": {"answers": answers},
            }
            yield i, example


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Version folder of the prepared dataset."""
    builder = ToyCaptions(data_dir=tmp_path_factory.mktemp("source"))
    builder.download_and_prepare()
    return str(builder.data_dir)


def build(source, out, **fields):
    config = TfdsConfig(data=source, held_out=0.0, **fields)
    dataset = RLDSDataset(prepare(Builder, config, str(out)))
    items = []
    for frame in range(dataset.num_frames):
        items += read_items(dataset, frame)
    return dataset, items


def test_features_give_questions_and_the_most_frequent_answer(source, tmp_path, capsys):
    fields = {"image": "picture", "question": "asked", "answer": "said/answers"}
    dataset, items = build(source, tmp_path, **fields)
    assert dataset.directory.parts[-3:] == ("mm_tfds", "toy_captions", "1.0.0")
    found = {(item.question, item.answer) for item in items}
    assert found == {("what is 0?", "a mug"), ("what is 1?", "a dish")}
    assert "dropped entry: no answer: 1" in capsys.readouterr().err


def test_prompt_is_the_question_of_captions(source, tmp_path):
    _, items = build(source, tmp_path, name="captions", image="picture", answer="asked")
    assert {item.question for item in items} == {"describe the image."}


def test_unknown_feature_is_an_error(source, tmp_path):
    with pytest.raises(UserError, match="no feature 'image'; it has asked, picture, said"):
        build(source, tmp_path, name="wrong", image="image")
