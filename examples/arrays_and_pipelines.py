# %% [markdown]
# # Arrays in, a scikit-learn pipeline out
#
# A script in cells, to be read as a notebook (see first_look.py). The images are a numpy array that
# is in memory already: no folder, no files. `python examples/arrays_and_pipelines.py` takes about
# three minutes on one CPU core, seconds with `--quick`.

# %%
import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import torchmae
from torchmae.presets.pretrain import demo
from torchmae.sklearn import Features

QUICK = "--quick" in sys.argv

# %% [markdown]
# ## The images
#
# scikit-learn's digits are numbers from 0 to 16. Here they become 8-bit pixels, four times as
# large: an array of [images, height, width].

# %%
digits = load_digits()
images = np.kron(np.minimum(255, 16 * digits.images), np.ones((1, 4, 4))).astype(np.uint8)
train, test = slice(0, 1400), slice(1400, None)
print("images:", images.shape, images.dtype)

# %% [markdown]
# ## Pre-train on the array
#
# `data_id` is a name of your own, by which the same line called again knows that it is the same
# data, and resumes.

# %%
recipe = demo() | {"data": images[train], "data_id": "digits-x4", "out": "runs/arrays"}
run = torchmae.pretrain(**recipe | {"workers": 0} | ({"epochs": 1} if QUICK else {}))

# %% [markdown]
# ## Ten labels of each digit, in a pipeline
#
# `Features` is a transformer like any other: it can be cloned, searched over and pickled.

# %%
few = np.concatenate([np.flatnonzero(digits.target[train] == k)[:10] for k in range(10)])
pipeline = make_pipeline(Features(run.path), StandardScaler(), LogisticRegression(max_iter=2000))
pipeline.fit(images[few], digits.target[few])
pixels = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
pixels.fit(images[few].reshape(len(few), -1), digits.target[few])
right = pipeline.score(images[test], digits.target[test])
raw = pixels.score(images[test].reshape(len(images[test]), -1), digits.target[test])
print(f"features: {right:.1%}, raw pixels: {raw:.1%} of {len(images[test])} test digits are right")
