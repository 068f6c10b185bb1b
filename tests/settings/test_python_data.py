import json
import pickle

import numpy as np
import pytest
import torch

from torchmae.errors import UserError
from torchmae.settings.options import flatten, from_python
from torchmae.settings.python_data import PythonData, as_images, typed
from torchmae.tasks.embed.config import Embed
from torchmae.tasks.look.config import Look
from torchmae.tasks.pretrain.config import Pretrain

IMAGES = np.zeros((4, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "data, text",
    [
        (IMAGES, "python:ndarray-4x6x5x3-uint8"),
        (torch.from_numpy(IMAGES), "python:Tensor-4x6x5x3-uint8"),
        (list(IMAGES), "python:list-4"),
        ((IMAGES, [0, 1, 0, 1]), "python:ndarray-4x6x5x3-uint8"),
        (iter(IMAGES), "python:iterator"),
    ],
)
def test_data_in_python_has_a_short_text(data, text):
    held = PythonData.of(data)
    assert str.__eq__(held, text) and held.data is data
    assert str.__eq__(PythonData.of(data, "a"), f"{text}?data_id=a")
    assert json.loads(json.dumps({"data": held})) == {"data": text}


def test_two_are_equal_where_they_are_the_same_object():
    held = PythonData.of(IMAGES)
    assert held == PythonData.of(IMAGES) and hash(held) == hash(PythonData.of(IMAGES))
    assert held != PythonData.of(IMAGES.copy()) and held != "python:ndarray-4x6x5x3-uint8"
    assert held not in ("none", None)
    copy = pickle.loads(pickle.dumps(PythonData.of(IMAGES, "mine")))
    assert copy.data_id == "mine" and np.array_equal(copy.data, IMAGES)


def test_a_verb_of_the_library_takes_it_by_place_and_by_name(tmp_path):
    config = from_python(Pretrain, "torchmae.pretrain", (IMAGES,), {"data_id": "mine"})
    assert config.source.data.data is IMAGES and config.source.data.data_id == "mine"
    assert "data_id" not in flatten(config)
    assert json.loads(json.dumps(flatten(config)["data"])).endswith("-uint8?data_id=mine")
    embed = from_python(Embed, "torchmae.embed", ("run",), {"data": list(IMAGES)})
    assert isinstance(embed.data, PythonData) and len(embed.data.data) == 4
    assert from_python(Pretrain, "torchmae.pretrain", (tmp_path,), {}).source.data == str(tmp_path)


def test_a_setting_of_several_images_takes_paths_or_one_set_of_images():
    (only,) = from_python(Look, "torchmae.look", ("run", list(IMAGES)), {}).images
    assert isinstance(only, PythonData) and len(only.data) == 4
    assert from_python(Look, "torchmae.look", ("run", ["a.png", "b"]), {}).images == ("a.png", "b")
    assert as_images(None, several=False, data_id=None) is None


def test_a_name_of_data_is_a_text_and_for_data_in_python():
    for name in (3, "", " "):
        with pytest.raises(UserError, match="a text of your own"):
            from_python(Pretrain, "torchmae.pretrain", (IMAGES,), {"data_id": name})
    with pytest.raises(UserError, match="is for data in Python"):
        from_python(Pretrain, "torchmae.pretrain", ("photos",), {"data_id": "mine"})


def test_no_command_line_names_what_is_in_python_alone():
    assert typed("my photos") == "'my photos'" and typed(PythonData.of(IMAGES)) == "DATA"
