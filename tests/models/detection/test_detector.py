"""The detector: losses image by image, predictions in the image's own pixels."""

import pytest
import torch

pytest.importorskip("torchvision")

from torchvision.models.detection.image_list import ImageList

from torchmae.errors import UserError
from torchmae.models.detection.detector import Detector, Found, image_keys, paste
from torchmae.models.encoders import build_encoder

ENCODER = dict(
    embed_dim=32,
    depth=4,
    num_heads=2,
    image_size=(64, 64),
    patch_size=8,
    channels=3,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)


def detector(**more) -> Detector:
    torch.manual_seed(0)
    return Detector(build_encoder(ENCODER), ["a", "b"], width=16, samples=32, **more)


def targets(masks=True):
    found = [
        dict(boxes=[[5.0, 6, 40, 30], [30, 30, 60, 62]], labels=[1, 2], crowds=[]),
        dict(boxes=[], labels=[], crowds=[[0.0, 0, 30, 30]]),
        dict(boxes=[[10.0, 10, 20, 20]], labels=[2], crowds=[]),
    ]
    made = []
    for one in found:
        count = len(one["boxes"])
        target = {
            "boxes": torch.tensor(one["boxes"]).reshape(-1, 4),
            "labels": torch.tensor(one["labels"], dtype=torch.int64),
            "crowds": torch.tensor(one["crowds"]).reshape(-1, 4),
        }
        if masks:
            target["masks"] = torch.ones(count, 112, 112, dtype=torch.uint8)
            target["has_mask"] = torch.ones(count, dtype=torch.bool)
        made.append(target)
    return made


def images(height=64, width=64):
    torch.manual_seed(1)
    return torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)


KEYS = image_keys(0, torch.tensor([0, 0, 1]), torch.tensor([4, 5, 6]))


def losses(model, some, keys=KEYS, seen=None):
    seen = images() if seen is None else seen
    return model.losses(model.encoder.normalize(seen), some, keys)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_losses_do_not_depend_on_how_images_are_grouped(kind):
    """torchvision's are means over all boxes of a batch: there the share of an image depends on
    the others."""
    model = detector(kind=kind).train()
    masks = kind == "mask_rcnn"
    whole = losses(model, targets(masks))
    assert set(whole) == {"objectness", "proposal", "class", "box"} | ({"mask"} if masks else set())
    for i in range(3):
        part = slice(i, i + 1)
        alone = losses(model, targets(masks)[part], KEYS[part], images()[part])
        for name, values in whole.items():
            torch.testing.assert_close(values[part], alone[name], atol=1e-5, rtol=1e-5)
    assert whole["box"][1] == 0 == whole["proposal"][1] and whole["class"].min() > 0


def test_every_parameter_has_a_gradient_also_without_objects():
    """DDP waits for all of them; an image without objects says nothing of boxes and masks."""
    model = detector().train()
    found = losses(model, targets()[1:2], KEYS[1:2], images()[1:2])
    sum(one.mean() for one in found.values()).backward()
    missing = [name for name, one in model.named_parameters() if one.grad is None]
    assert missing == ["encoder.pos_embed"]  # fixed
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


def test_the_global_generator_is_not_used():
    model = detector().train()
    seen = images()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = losses(model, targets(), seen=seen)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = losses(model, targets(), seen=seen)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = losses(model, targets(), image_keys(1, torch.zeros(3).long(), torch.arange(3)))
    assert not torch.equal(first["class"], other["class"])


def test_objects_without_a_mask_teach_no_mask():
    model = detector().train()
    some = targets()
    some[0]["has_mask"][:] = False
    some[0]["masks"][:] = 0
    found = losses(model, some)
    assert found["mask"][0] == 0 and found["mask"][2] > 0
    assert torch.equal(found["box"], losses(model, targets())["box"])


def test_mixed_precision_computes_boxes_in_float32():
    model = detector().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses(model, targets())
    full = losses(model, targets())
    for name in ("objectness", "class", "mask"):
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], full[name], atol=0.05, rtol=0.1)


def test_the_detector_is_built_again_from_its_config():
    model = detector(fit="own", max_detections=7, anchor=4.0)
    again = Detector.build(model.config())
    assert again.config() == model.config()
    again.load_state_dict(model.state_dict())
    image = images(50, 70)[:1]
    one, other = model.predict(image)[0], again.predict(image)[0]
    assert torch.equal(one.boxes, other.boxes) and len(one.boxes) <= 7
    assert [size for (size,) in model.proposals.anchor_generator.sizes] == [8, 16, 32, 64, 128]


@pytest.mark.parametrize("fit, seen", [("long", (32, 64)), ("own", (100, 200))])
def test_images_of_any_size(fit, seen):
    model = detector(fit=fit)
    image = images(100, 200)[:1]
    assert model.as_seen(image).shape[2:] == seen
    (found,) = model.predict(image)
    assert found.boxes.shape[1] == 4 and found.masks.shape[1:] == (28, 28)
    assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= 200.01).all()
    assert (found.boxes[:, 3] <= 100.01).all() and (found.scores[:-1] >= found.scores[1:]).all()
    assert found.classes.max() <= 1 and found.boxes.max() > 100  # in the image's pixels
    assert found.mask(0, 100, 200).shape == (100, 200)
    for part in ((37, 64), (8, 8), (65, 41)):
        assert len(model.predict(images(*part)[:1])) == 1


def test_masks_are_pasted_at_the_middle_of_pixels():
    """Against each pixel computed by itself; and a box of exactly the grid gives the grid."""
    torch.manual_seed(0)
    mask = torch.rand(28, 28)
    exact, top, left = paste(mask, torch.tensor([3.0, 5, 31, 33]), 50, 60)
    assert (top, left) == (5, 3) and torch.equal(exact, mask >= 0.5)
    box = torch.tensor([-3.4, 10.3, 19.8, 37.9])
    found, top, left = paste(mask, box, 30, 60)
    assert (top, left) == (10, 0) and found.shape == (20, 20)
    for y in range(20):
        for x in range(20):
            u = (x + left + 0.5 - box[0]) / (box[2] - box[0]) * 28 - 0.5
            v = (y + top + 0.5 - box[1]) / (box[3] - box[1]) * 28 - 0.5
            u, v = (value.clamp(0, 27) for value in (u, v))
            x0, y0 = min(int(u), 26), min(int(v), 26)
            du, dv = u - x0, v - y0
            around = mask[y0 : y0 + 2, x0 : x0 + 2]
            value = (
                around[0, 0] * (1 - du) * (1 - dv)
                + around[0, 1] * du * (1 - dv)
                + around[1, 0] * (1 - du) * dv
                + around[1, 1] * du * dv
            )
            if abs(value - 0.5) > 1e-4:
                assert bool(found[y, x]) == (value >= 0.5)
    outside, _, _ = paste(mask, torch.tensor([70.0, 5, 90, 20]), 50, 60)
    assert outside.numel() == 0
    some = Found(box[None], torch.ones(1), torch.zeros(1, dtype=torch.int64), mask[None])
    assert some.mask(0, 30, 60)[10:, :20].equal(found) and some.mask(0, 30, 60).sum() == found.sum()


def test_patches_that_four_does_not_divide():
    """Of 14 px, as of the MAE's ViT-H/14: anchors and pooled boxes lie on cells of 3.5 px."""
    torch.manual_seed(0)
    encoder = build_encoder({**ENCODER, "patch_size": 14, "image_size": (56, 56)})
    model = Detector(encoder, ["a", "b"], width=16, samples=32).train()
    assert model.heads.box_roi_pool.strides == (3.5, 7, 14, 28)
    anchors = model.proposals.anchor_generator
    maps = [torch.zeros(1, 16, side, side) for side in (16, 8, 4, 2, 1)]
    boxes = anchors(ImageList(torch.zeros(1, 3, 56, 56), [(56, 56)]), maps)[0]
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).unique(dim=0)
    steps = [stride * torch.arange(56 // stride) for stride in (3.5, 7.0, 14.0, 28.0, 56.0)]
    expected = torch.cat([torch.cartesian_prod(step, step) for step in steps]).unique(dim=0)
    torch.testing.assert_close(centers, expected, atol=0.51, rtol=0)  # torchvision rounds sizes
    found = losses(model, targets(), seen=images(56, 56))
    sum(one.mean() for one in found.values()).backward()
    assert all(torch.isfinite(one).all() for one in found.values())
    assert len(model.predict(images(50, 61))) == 3


def test_what_cannot_be_built():
    with pytest.raises(UserError, match="at least one class"):
        Detector(build_encoder(ENCODER), [])
    with pytest.raises(UserError, match="unknown detector 'yolo'"):
        detector(kind="yolo")
    with pytest.raises(UserError, match="unknown fit"):
        detector(fit="short")
    wide = build_encoder({**ENCODER, "patch_size": (8, 16)})
    with pytest.raises(UserError, match="square patches"):
        Detector(wide, ["a"])
    with pytest.raises(UserError, match="boxes only"):
        detector(kind="faster_rcnn").predict(images()[:1])[0].mask(0, 64, 64)
