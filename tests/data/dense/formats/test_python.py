"""Annotated images in Python give what the same images give in files."""

import json

import numpy as np
import pytest
import torch
from helpers import label_maps, objects
from PIL import Image
from torch.utils.data import Dataset, Subset

from torchmae.data.config import DecodeOptions
from torchmae.data.decode import BadImage
from torchmae.data.dense import detection, segmentation
from torchmae.data.dense.annotated import Annotated
from torchmae.data.dense.find import WITH_BOXES, WITH_MASKS, find_layout
from torchmae.data.dense.formats import coco
from torchmae.data.dense.formats.python import Targets, read_map
from torchmae.data.sources.python.items import Items
from torchmae.errors import UserError
from torchmae.settings.python_data import PythonData

COUNT = 6
GENERATOR = np.random.default_rng(0)
MAPS = [label_maps.draw(GENERATOR) for _ in range(COUNT)]


class Listed(Dataset):
    """Items of a list, as a torch Dataset."""

    def __init__(self, items, broken=()):
        self.items = items
        self.broken = broken

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if i in self.broken:
            raise ValueError("lost")
        return self.items[i]


def tensors():
    return [
        (torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels).long())
        for image, labels in MAPS
    ]


def hub_set():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    pairs = [[Image.fromarray(one) for one in pair] for pair in MAPS]
    rows = {"image": [one for one, _ in pairs], "annotation": [one for _, one in pairs]}
    return datasets.Dataset.from_dict(rows, features=features)


SEGMENTED = {
    "list": lambda: MAPS,
    "Dataset": lambda: Listed(tensors()),
    "Subset": lambda: Subset(Listed(tensors()), range(COUNT)),
    "dictionaries": lambda: [dict(image=image, mask=labels) for image, labels in MAPS],
    "PIL images": lambda: [tuple(map(Image.fromarray, pair)) for pair in MAPS],
    "images and maps": lambda: tuple(map(list, zip(*MAPS))),
    "arrays": lambda: tuple(map(np.stack, zip(*MAPS))),
    "Hugging Face": hub_set,
}


@pytest.mark.parametrize("kind", SEGMENTED)
def test_label_maps(kind):
    layout = find_layout(PythonData.of(SEGMENTED[kind]()), WITH_MASKS)
    assert layout.words == "label maps in Python" and len(layout.train.source) == COUNT
    for i, (image, labels) in enumerate(MAPS):
        (stored,) = layout.train.masks[i].read(*labels.shape)
        assert np.array_equal(stored.values, labels) and not stored.colored
        assert np.array_equal(layout.train.source.read(i), image) or kind == "Hugging Face"


def test_sets_of_label_maps_are_those_of_files(tmp_path):
    for name, part in (("images", 0), ("masks", 1)):
        (tmp_path / name).mkdir()
        for i, pair in enumerate(MAPS):
            Image.fromarray(pair[part]).save(tmp_path / name / f"{i}.png")
    found = []
    for data in (str(tmp_path), PythonData.of(Listed(tensors()))):
        sets = segmentation.open_sets(data, None, DecodeOptions())
        seen = segmentation.look(sets, None, (), ("255",), data)
        found.append((seen, [sets.val.labels[0].read(40, 56)[0].values.tolist()]))
    assert found[0][0].pixels == found[1][0].pixels and found[0][1] == found[1][1]
    assert found[0][0].classes.names == found[1][0].classes.names == ("0", "1", "2")
    paths = [[str(tmp_path / name / f"{i}.png") for name in ("images", "masks")] for i in range(6)]
    listed = find_layout(PythonData.of(list(map(tuple, paths))), WITH_MASKS).train
    assert np.array_equal(listed.masks[2].read(40, 56)[0].values, MAPS[2][1])


def targets(*items):
    return Targets(Items(list(items), "list", held=True), alone=True)


@pytest.mark.parametrize(
    "target, reason",
    [
        (3, "a int is no mask"),
        (np.zeros((4, 4)), r"float64 \[4, 4\] is no mask: \[H, W\] of whole numbers"),
        (np.zeros((3, 4, 4), np.int64), r"int64 \[3, 4, 4\] is no mask"),
        (np.array([[0, -1]]), "values of -1 to 0, beyond 0 to 65535: what is no class is 255"),
        (np.array([[1 << 40]]), "beyond 0 to 65535"),
        (Image.new("F", (4, 4)), "mode F is no mask"),
        ("no/such.png", "its mask: No such file"),
    ],
)
def test_what_is_no_label_map(target, reason):
    with pytest.raises(BadImage, match=reason):
        read_map(targets(target), 0)


def test_label_maps_are_recognized_by_their_content():
    prints = [
        find_layout(PythonData.of(Listed(items)), WITH_MASKS).train.masks.fingerprint()
        for items in (tensors(), MAPS, MAPS[::-1], MAPS[:5])
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    whole = find_layout(PythonData.of(MAPS), WITH_MASKS).train.masks
    assert whole.select([1, 2]).select(np.array([1]))[0].read(40, 56)[0].values.sum() > 0
    assert len(whole.select([1, 2])) == 2 and whole.select([1]).fingerprint() != prints[1]


def test_bad_items_are_named_by_their_numbers():
    items = [*MAPS, (MAPS[0][0], MAPS[0][1][:9])]
    data = PythonData.of(Listed(items, broken=[2]))
    sets = segmentation.open_sets(data, None, DecodeOptions())
    seen = segmentation.look(sets, None, (), ("255",), data)
    assert {bad.name: bad.reason for bad in seen.bad} == {
        "Listed[2]": "ValueError: lost",
        "Listed[6]": "its mask has 56 x 9 pixels, the image 56 x 40",
    }


def drawn(names=True):
    """(image, objects) of the images of `objects.coco_set`."""
    found = []
    for seed in range(1, COUNT + 1):
        image, shapes = objects.draw(seed, least=1)
        boxes = torch.tensor([box for _, box, _ in shapes])
        labels = torch.tensor([number + 1 for number, _, _ in shapes])
        masks = torch.from_numpy(np.array([mask for _, _, mask in shapes])).to(torch.uint8)
        found.append((image, dict(boxes=boxes, labels=labels, masks=masks)))
    data = Listed(found)
    if names:
        data.classes = ["__background__", "box", "disk"]
    return data


def opened(data, classes=None, kinds=WITH_BOXES) -> Annotated:
    layout = find_layout(PythonData.of(data), kinds)
    return layout.read(layout.train, classes)


def hub_objects():
    """As the sets of the hub have them: COCO's boxes, numbers of named classes from 0."""
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=["box", "disk"])
    lists = getattr(datasets, "List", datasets.Sequence)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": lists(lists(datasets.Value("float32"), length=4)),
                "category": lists(kind),
            },
        }
    )
    rows = []
    for image, target in drawn():
        boxes = target["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        labels = (target["labels"] - 1).tolist()
        rows.append(
            dict(image=Image.fromarray(image), objects=dict(bbox=boxes.tolist(), category=labels))
        )
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("kind", ["Dataset", "list and list", "Hugging Face"])
def test_objects_are_those_of_a_coco_json(kind, tmp_path):
    folder = objects.coco_set(tmp_path / "coco", {"train": COUNT}, least=1)
    wanted = coco.read(coco.find(folder)["train"])
    if kind == "list and list":
        images, dictionaries = map(list, zip(*drawn()))
        found = opened((images, dictionaries))
        assert found.classes == ("1", "2")
    else:
        found = opened(drawn() if kind == "Dataset" else hub_objects())
        assert found.classes == wanted.classes == ("box", "disk")
    assert not found.findings.lines() and found.has_masks == (kind != "Hugging Face")
    for one, other in zip(found.objects, wanted.objects):
        assert np.array_equal(one.boxes, other.boxes) and one.size == other.size
        assert np.array_equal(one.classes, other.classes)
        assert one.masks == other.masks or kind == "Hugging Face"


def test_objects_in_other_forms():
    (one,) = opened([(MAPS[0][0], dict(boxes=[], labels=[]))]).objects
    assert len(one) == 0
    (flat,) = opened([dict(image=MAPS[0][0], boxes=[[1, 2, 9, 9]], labels=["cat"])]).objects
    assert flat.boxes.tolist() == [[1, 2, 9, 9]] and flat.classes.tolist() == [0]
    crowd = dict(boxes=[[1, 2, 9, 9]], labels=[10], iscrowd=[1])
    numbers = [(MAPS[0][0], crowd), (MAPS[0][0], crowd | {"labels": [9]})]
    assert opened(numbers).classes == ("9", "10") and opened(numbers).objects[0].crowd.all()
    assert opened(numbers, ("9",)).findings.lines() == [
        "objects of the class 10, not among the training set's, left out: 1, such as list[0], "
        "object 0"
    ]


def test_what_is_wrong_with_objects_is_named():
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    centers = tv_tensors.BoundingBoxes([[5, 5, 4, 4]], format="CXCYWH", canvas_size=(40, 56))
    image, good = MAPS[0][0], dict(boxes=[[1, 2, 9, 9]], labels=[0])
    bad = [
        good | {"boxes": [[1, 2, 9]]},
        good | {"labels": [0, 1]},
        good | {"boxes": centers},
        [1, 2],
        good | {"boxes": [[1, 2], [3]]},
    ]
    data = Listed([(image, good), *((image, one) for one in bad), (image, good)], broken=[6])
    found = opened(data)
    reasons = {one.name.partition(", ")[::2] for one in found.findings.files()}
    assert reasons == {
        ("Listed[1]", "boxes of shape [1, 3], not [N, 4]"),
        ("Listed[2]", "1 boxes, and not a label (and mask) for each"),
        ("Listed[3]", "boxes of format CXCYWH: convert them to XYXY"),
        ("Listed[4]", "a list is no dictionary with boxes"),
        ("Listed[5]", "boxes that are no array"),
    }
    assert [found.source.name(i) for i in range(2)] == ["Listed[0]", "Listed[6]"]  # the scan's
    reaching = opened([(image, good | {"boxes": [[50, 2, 90, 9]]})])
    assert "boxes that reach over their image, clipped" in reaching.findings.lines()[0]
    with pytest.raises(UserError, match=r"left out: 1, such as list\[0\], .*; give items of"):
        opened([(image, good | {"labels": []})])


def test_images_alone_and_the_wrong_kind_are_refused():
    for data in (np.stack([image for image, _ in MAPS]), ["a.png", "b.png"]):
        with pytest.raises(UserError, match="images alone; give items of"):
            opened(data)
    with pytest.raises(UserError, match=r"a ndarray \[40, 56\] in place of objects"):
        opened(MAPS)
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UserError, match="images alone"):
        opened(pandas.DataFrame({"path": ["a.png"]}))


def test_a_segmenter_takes_objects_with_masks():
    data = PythonData.of(drawn())
    sets = segmentation.open_sets(data, None, DecodeOptions())
    assert sets.names == ("background", "box", "disk") and sets.layout == "objects in Python"
    mask = sets.train.labels[0].label_map(48, 64)
    assert set(np.unique(mask)) <= {0, 1, 2} and mask.any()
    assert detection.open_sets(data, None, DecodeOptions()).fingerprint()
    assert json.dumps(data) == '"python:Listed-6"'
