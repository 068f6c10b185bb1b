"""Features in two dimensions."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchmae.errors import library


class Layout(NamedTuple):
    """Places of features, and what they mean in words."""

    places: Float[np.ndarray, "N 2"]
    meaning: str


def by_pca(rows: Float[Tensor, "N F"], seed: int) -> Layout:
    """The two principal components, signs as those of `mae look`: nothing is random."""
    centered = rows.double() - rows.double().mean(0)
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    axes = vectors.T.flip(0)[:2]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    share = values.flip(0)[:2].clamp(min=0) / values.clamp(min=0).sum().clamp(min=1e-300)
    places = centered @ axes.T
    if places.shape[1] < 2:
        places = torch.cat([places, torch.zeros_like(places)], dim=1)
    shown = " and ".join(f"{100 * float(one):.0f} %" for one in share)
    return Layout(
        places.numpy(),
        f"PCA: across the first, up the second principal component, {shown} of the variance. What "
        "is far apart is different; what is close may differ in other directions",
    )


def by_umap(rows: Float[Tensor, "N F"], seed: int) -> Layout:
    """UMAP of umap-learn (McInnes et al. 2018) with its 15 neighbors."""
    umap = library("umap", "umap")
    near = min(15, len(rows) - 1)
    start = "random" if len(rows) < 2 * near else "spectral"
    model = umap.UMAP(n_neighbors=near, init=start, random_state=seed, n_jobs=1)
    return Layout(
        np.asarray(model.fit_transform(rows.numpy()), dtype=np.float64),
        f"UMAP, {near} neighbors, seed {seed}: who is near whom means much, distances between "
        "groups and sizes of groups mean little",
    )


def by_tsne(rows: Float[Tensor, "N F"], seed: int) -> Layout:
    """t-SNE of scikit-learn (van der Maaten and Hinton 2008), begun at the PCA."""
    manifold = library("sklearn.manifold", "demo")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    model = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return Layout(
        np.asarray(model.fit_transform(rows.numpy()), dtype=np.float64),
        f"t-SNE, perplexity {perplexity:.0f}, seed {seed}: who is near whom means much, distances "
        "between groups and sizes of groups mean little",
    )


LAYOUTS: dict[str, Callable[[Float[Tensor, "N F"], int], Layout]] = {
    "pca": by_pca,
    "umap": by_umap,
    "tsne": by_tsne,
}
# What a layout needs, and the extra that brings it.
NEEDS = {"umap": ("umap", "umap"), "tsne": ("sklearn.manifold", "demo")}
