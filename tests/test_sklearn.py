import importlib
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import torchmae
from torchmae.errors import UserError
from torchmae.models.weights import load

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from torchmae.sklearn import Features

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 48, 40, 3), dtype=np.uint8)
LABELS = np.arange(12) % 2


@pytest.fixture(scope="module")
def embedded(run, tmp_path_factory):
    """What `mae embed` makes of the images as files."""
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    torchmae.embed(run, folder, out=folder / "features.npz")
    return np.load(folder / "features.npz")["features"]


def test_a_loaded_encoder_has_features_of_images_of_any_size(run, embedded, tmp_path):
    encoder = torchmae.load(run)
    tensors = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    for images in (PIXELS, tensors, list(map(Image.fromarray, PIXELS)), list(tensors)):
        found = encoder.features(images)
        assert found.dtype == torch.float32 and np.array_equal(found.numpy(), embedded)
    assert torch.equal(encoder.features(Image.fromarray(PIXELS[3]))[0], found[3])
    mixed = [PIXELS[0], Image.fromarray(PIXELS[1]).resize((90, 33))]
    assert torch.equal(encoder.features(mixed)[0], encoder.features(PIXELS[:1])[0])
    both = encoder.features(PIXELS, pool="cls+mean", layer=1, batch_size=5)
    assert both.shape == (12, 2 * encoder.embed_dim) and not both.requires_grad
    size = encoder.image_size
    own = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    tokens = encoder(encoder.normalize(own))[:, 1:].mean(1)
    assert torch.allclose(encoder.features(own), tokens, atol=1e-6)
    again = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(again.features(PIXELS[:2]), encoder.features(PIXELS[:2]))
    assert torch.equal(torchmae.Run(run).encoder().features(PIXELS[:2]), again.features(PIXELS[:2]))


def test_features_say_what_they_cannot_use(run):
    encoder = torchmae.load(run)
    with pytest.raises(UserError, match=r"list\[1\] cannot be read: a int is no image"):
        encoder.features([PIXELS[0], 3])
    with pytest.raises(UserError, match="unknown pool 'max'"):
        encoder.features(PIXELS, pool="max")
    with pytest.raises(UserError, match="layer=99: 1 to"):
        encoder.features(PIXELS, layer=99)
    with pytest.raises(UserError, match="needs an encoder of torchmae.load"):
        load(run).features(PIXELS)


def test_a_pipeline_trains_predicts_and_pickles_with_its_weights(run, embedded, tmp_path):
    features = Features(run, batch_size=5, device="cpu")
    with pytest.raises(NotFittedError):
        features.transform(PIXELS)
    assert np.array_equal(features.fit_transform(PIXELS), embedded)
    pipeline = make_pipeline(clone(features), LogisticRegression())
    predicted = pipeline.fit(PIXELS, LABELS).predict(list(PIXELS))
    assert np.array_equal(predicted, LogisticRegression().fit(embedded, LABELS).predict(embedded))
    search = GridSearchCV(pipeline, {"features__pool": ["mean", "cls"]}, cv=2)
    assert search.fit(PIXELS, LABELS).best_params_["features__pool"] in ("mean", "cls")
    stored = pickle.dumps(pipeline.set_params(features__run=tmp_path / "gone"))
    assert np.array_equal(pickle.loads(stored).predict(PIXELS), predicted)
    names = pipeline[0].get_feature_names_out()
    assert len(names) == embedded.shape[1] and names[0] == "features0"
    with pytest.raises(UserError, match="is not a run folder"):
        Features(tmp_path).fit(PIXELS)


# Those that need no table of numbers: `check_estimator` itself stops behind the first, since the
# tags say that images are taken. The one that gives wrong types to __init__ fails by the checks of
# types of these tests.
CHECKS = (
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
    estimator_checks.check_mixin_order,
)


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_the_checks_of_estimators_pass_as_far_as_images_allow(run):
    found = estimator_checks.check_estimator(Features(run), on_fail=None, on_skip=None)
    assert {one["status"] for one in found} == {"passed"}
    for check in CHECKS:
        check("Features", Features(run))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(UserError, match=r'pip install "torchmae\[sklearn\]"'):
        importlib.reload(torchmae.sklearn)
