"""Two dimensions: PCA against numpy's SVD; t-SNE keeps groups apart; extras."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchmae.errors import UserError, library
from torchmae.eval.neighbors.layout import LAYOUTS, NEEDS, by_pca


def two_groups() -> torch.Tensor:
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    rows[:30, 0] += 20
    return rows


def test_pca_is_that_of_numpy_s_svd() -> None:
    rows = two_groups()
    made = by_pca(rows, 0)
    a = rows.double().numpy()
    a -= a.mean(0)
    _, values, axes = np.linalg.svd(a, full_matrices=False)
    for k in (0, 1):
        peak = axes[k][np.abs(axes[k]).argmax()]
        np.testing.assert_allclose(made.places[:, k], a @ axes[k] * np.sign(peak), atol=1e-9)
    share = values**2 / (values**2).sum()
    assert f"{100 * share[0]:.0f} % and {100 * share[1]:.0f} %" in made.meaning
    assert by_pca(rows[:, :1], 0).places.shape == (60, 2)


def test_tsne_keeps_groups_apart() -> None:
    """UMAP compiles for a minute before its first map, and is not run here."""
    rows = two_groups()[15:45]
    places = LAYOUTS["tsne"](rows, 3).places
    centers = places[:15].mean(0), places[15:].mean(0)
    nearest = [int(np.linalg.norm(p - centers[0]) > np.linalg.norm(p - centers[1])) for p in places]
    assert nearest == [0] * 15 + [1] * 15


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (package, extra) in NEEDS.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f'pip install "torchmae\\[{extra}\\]"'):
            LAYOUTS[name](two_groups(), 0)


def test_a_folder_without_code_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip leaves __pycache__ behind, which Python imports as a namespace."""
    (tmp_path / "torchmae_left_over" / "__pycache__").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r'pip install "torchmae\[umap\]"'):
        library("torchmae_left_over", "umap")
    assert library("json", "umap").loads("1") == 1
