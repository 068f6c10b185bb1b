"""What the page computes by itself is what Python computes: masks, crops, components, errors."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchmae.data.transforms import CenterCropResize
from torchmae.eval.tokens.maps import likeness
from torchmae.hashing import hash32
from torchmae.models.masking import block_shapes, masking, noise
from torchmae.report.html import playground
from torchmae.report.pictures import error_map
from torchmae.tasks.export.page import MASKINGS

Compute = Callable[[str, Any], Any]


@pytest.fixture
def compute(tmp_path: Path) -> Compute:
    """Runs an expression of compute.js on `input` in node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    shutil.copy(playground.STATIC / "compute.js", tmp_path / "compute.mjs")

    def run(expression: str, given: Any) -> Any:
        script = (
            "import * as compute from './compute.mjs'; import { readFileSync } from 'node:fs';"
            "const input = JSON.parse(readFileSync(0));"
            f"console.log(JSON.stringify({expression}));"
        )
        done = subprocess.run(
            [node, "--input-type=module", "-e", script],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_hashes_and_masks_are_those_of_python(compute: Compute) -> None:
    keys = [[0], [1, 2, 3], [2**32, 7], [2**52 + 12345, 2**31, 2**33 + 1]]
    expected = [hash32(*key) for key in keys]
    assert compute("input.map((keys) => compute.hash32(...keys))", keys) == expected
    asked, expected = [], []
    for name in MASKINGS:  # those that the page offers
        for grid, ratio, seed in [
            ((14, 14), 0.75, 0),
            ((5, 8), 0.6, 2**31 + 5),
            ((20, 20), 0.9, 9),
        ]:
            zero = torch.zeros(1, dtype=torch.int64)
            scores = noise(seed, zero, zero, grid[0] * grid[1])
            expected.append(sorted(masking(name)(scores, grid, ratio).hide[0].tolist()))
            asked.append([name, grid, ratio, seed, block_shapes(*grid)])
    assert compute("input.map((one) => compute.sampleMask(...one))", asked) == expected


def test_the_crop_of_the_browser_is_that_of_the_library(compute: Compute) -> None:
    generator = np.random.default_rng(0)
    for (height, width), size, share in [
        ((40, 61), (32, 32), 1.0),
        ((23, 90), (16, 24), 0.875),
        ((11, 9), (32, 32), 1.0),
    ]:
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[: height // 2] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
        crop = CenterCropResize(size, share)
        window = compute("compute.centerWindow(...input)", [height, width, size, share])
        own = crop.crop(height, width)
        assert [window[name] for name in ("top", "left", "height", "width")] == list(own[:4])
        cut = image[own.top : own.top + own.height, own.left : own.left + own.width]
        pixels = compute(
            "[...compute.resize(...input)]",
            [cut.flatten().tolist(), own.height, own.width, 3, size],
        )
        expected = crop(image)[0].permute(1, 2, 0).numpy().astype(int)
        off = np.abs(np.reshape(pixels, expected.shape) - expected)
        assert off.max() <= 2 and off.mean() < 0.2  # torch's weights are integers


def test_components_are_those_of_a_singular_value_decomposition(compute: Compute) -> None:
    generator = np.random.default_rng(0)
    scales = np.array([9, 5, 3, *[0.3] * 13])
    tokens = generator.normal(size=(60, 16)) * scales + 4
    colors = compute(
        "[...compute.principalColors(Float32Array.from(input), 60, 16)]", tokens.flatten().tolist()
    )
    found = np.reshape(colors, (60, 3)).astype(float)
    centered = tokens - tokens.mean(0)
    axes = np.linalg.svd(centered, full_matrices=False)[2][:3]
    for color, along in zip(found.T, (centered @ axes.T).T):
        inside = (color > 0) & (color < 255)  # the ends are cut off
        assert abs(np.corrcoef(color[inside], along[inside])[0, 1]) > 0.999


def test_similarity_is_the_cosine_of_mae_look(compute: Compute) -> None:
    tokens = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    answer = compute(
        "(({ cosines, colors }) => ({ cosines, colors: [...colors] }))"
        "(compute.similarity(Float32Array.from(input), 12, 8, 5))",
        tokens.flatten().tolist(),
    )
    map_of = torch.from_numpy(tokens).T.reshape(8, 3, 4)
    expected = likeness(map_of, map_of[:, 1, 1]).flatten().tolist()
    assert answer["cosines"] == pytest.approx(expected, abs=1e-6)
    least = int(np.argmin(answer["cosines"]))
    assert answer["colors"][15:18] == [253, 231, 37]
    assert answer["colors"][3 * least : 3 * least + 3] == [68, 1, 84]


def test_errors_are_those_of_the_sheets(compute: Compute) -> None:
    generator = np.random.default_rng(0)
    truth, made = generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    made[4:] = truth[4:]
    answer = compute(
        "(({ colors, mean }) => ({ colors: [...colors], mean }))"
        "(compute.errorMap(...input, 3, [8, 8], (y) => y < 4))",
        [truth.flatten().tolist(), made.flatten().tolist()],
    )
    images = [torch.from_numpy(one).permute(2, 0, 1)[None] for one in (truth, made)]
    colors, mean = error_map(*images)
    own = np.reshape(answer["colors"], (8, 8, 3)).astype(int)
    theirs = colors[0].permute(1, 2, 0).numpy().astype(int)
    assert answer["mean"] == pytest.approx(2 * mean) and (own[4:] == 255).all()
    assert np.abs(own - theirs).mean() < 12  # matplotlib's map has nine colors, the page's five


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for backend in ("server.js", "browser.js"):
        for name, content in playground.files(backend).items():
            text = content.decode()
            assert not re.search(r"https?://|\beval\(|innerHTML", text), name
    html = playground.files("server.js")["page.html"].decode()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", html)
    assert "Content-Security-Policy" in playground.with_policy(html.encode(), "x").decode()
    names = set(re.findall(r'(?:id|for|aria-describedby|aria-labelledby)="([\w-]+)"', html))
    used = set(re.findall(r'\$\("([\w-]+)"\)', playground.files("server.js")["page.js"].decode()))
    assert used <= names


def test_everything_on_the_page_has_a_name_for_screen_readers() -> None:
    html = playground.files("server.js")["page.html"].decode()
    for tag in re.findall(r"<canvas[^>]*>", html):
        assert "role=" in tag and ("aria-label=" in tag or 'id="mask"' in tag), tag
    for number, kind in re.findall(r'<(?:input|select) id="(\w+)"([^>]*)', html):
        inside = re.search(rf"<label>[^<]*(?:<[^>]*>[^<]*)*?<\w+ id=\"{number}\"", html)
        assert inside or f'<label for="{number}">' in html, (number, kind)
