"""What a set with annotations is, and its parts."""

import pytest
from helpers.label_maps import make_shapes

from torchmae.data.dense.find import (
    WITH_BOXES,
    WITH_MASKS,
    Split,
    find_layout,
    hold_out_some,
    train_and_val,
    voc_folder,
)
from torchmae.errors import UserError


def test_mask_files_are_for_masks_only(tmp_path):
    data = make_shapes(tmp_path / "shapes", 2, 2)
    layout = find_layout(str(data), WITH_MASKS)
    assert layout.words == "images and mask files" and layout.val is not None
    with pytest.raises(UserError, match="no annotations that this verb reads"):
        find_layout(str(data), WITH_BOXES)
    with pytest.raises(UserError, match="Did you mean .*shapes"):
        find_layout(str(tmp_path / "shape"), WITH_MASKS)


def test_parts():
    assert train_and_val({"train": 1, "test": 2, "val": 3}, "x") == (1, 3)
    assert train_and_val({"train": 1, "test": 2}, "x") == (1, 2)
    assert train_and_val({"": 1}, "x") == (1, None)
    assert train_and_val({"test": 2}, "x") == (2, None)
    with pytest.raises(UserError, match="none is called train"):
        train_and_val({"val": 1, "test": 2}, "x")


def test_torchvision_is_its_folder():
    data = "torchvision:VOCSegmentation?root=/data&year=2007"
    assert voc_folder(data) == "/data/VOCdevkit/VOC2007"
    with pytest.raises(UserError, match="VOCSegmentation or VOCDetection"):
        voc_folder("torchvision:Cityscapes?root=/data")


def test_subsets_are_nested():
    """Fewer training images are some of the more, so that curves over their number compare."""
    few, held = hold_out_some(50, Split(0.2, 5, 3), False, "x")
    more, same = hold_out_some(50, Split(0.2, 20, 3), False, "x")
    assert set(few) < set(more) and held == same and not set(more) & set(held)
    assert (len(few), len(more), len(held)) == (5, 20, 10)


@pytest.mark.parametrize("has_val", [False, True])
def test_settings_are_chosen_on_images_that_no_seed_validates_on(has_val):
    avoid = (0, 1, 2)
    train, chosen_on = hold_out_some(50, Split(0.2, 30, 100, avoid), has_val, "x")
    validated = {i for s in avoid for i in hold_out_some(50, Split(0.2, None, s), has_val, "x")[1]}
    assert not set(train) & set(chosen_on) and not {*train, *chosen_on} & validated
    free = 50 - len(validated)
    assert (len(validated) > 10) == (not has_val) and len(chosen_on) == round(free / 5)
    assert len(train) == min(30, free - len(chosen_on))  # or as many as there are
    with pytest.raises(UserError, match="of 4 that no seed validates on"):
        hold_out_some(4, Split(0.5, None, 100, (0, 1, 2)), False, "x")
