# %% [markdown]
# # A first look at a masked autoencoder
#
# A script in cells: VS Code and PyCharm run it cell by cell, `jupytext --to ipynb first_look.py`
# makes a notebook of it, and `python examples/first_look.py` runs it as it is: about three minutes
# on one CPU core, seconds with `--quick`.

# %%
import json
import sys
from pathlib import Path

import numpy as np
import torch

import torchmae
from torchmae.presets.pretrain import demo

QUICK = "--quick" in sys.argv
OUT = Path("runs/first-look")

# %% [markdown]
# ## Pre-train
#
# 1,797 handwritten digits of 8x8 pixels, enlarged to 32x32, without their labels. 75 % of the
# patches are hidden; the encoder sees the others, the decoder predicts the hidden ones. The same
# line called again resumes, or finds that nothing is left to do.

# %%
recipe = demo() | {"out": str(OUT), "workers": 0}
if QUICK:
    recipe |= {"epochs": 1, "data": "digits?part=test"}
run = torchmae.pretrain(**recipe)

# %% [markdown]
# ## Has it learned anything?
#
# Not by the loss alone: it has to be below what predicting the mean of the visible patches gives.

# %%
records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
losses = [record for record in records if "loss of visible mean" in record]
print(
    f"loss {losses[-1]['loss']:.2f}, of the visible mean {losses[-1]['loss of visible mean']:.2f}"
)
print("pictures of the same digits during training:", run / "pictures")

# %% [markdown]
# ## What do frozen features know?
#
# Ten labels of each class, logistic regression, beside the same on raw pixels and on an untrained
# encoder.

# %%
torchmae.probe(run, "digits", fast=True, labels_per_class=10)
measured = run.results[-1]["results"]
for name, scores in measured["probe"].items():
    print(f"{name}: {scores['accuracy']:.1%}")
print("verdict:", measured["verdict"])

# %% [markdown]
# ## The encoder is a module
#
# With timm's parameter names. Of the tokens, the first is the class token; the mean of the others
# is a good feature of the image.

# %%
encoder = run.encoder()
images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32), np.uint8))
with torch.inference_mode():
    tokens = encoder(encoder.normalize(images))
print(
    "tokens of two images:", tuple(tokens.shape), " features:", tuple(tokens[:, 1:].mean(1).shape)
)
