"""`mae export --to page`: a folder of static files that runs a masked autoencoder in a browser."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torchmae.disk import copy, parse_json, sha256
from torchmae.errors import UserError
from torchmae.interop.exporting.check import ExportInput, ExportResult
from torchmae.interop.exporting.graphs import to_onnx
from torchmae.models.masking import block_shapes
from torchmae.report.html import playground
from torchmae.runfolder import kind_of, read_config
from torchmae.tasks.export.config import Export

MOST_BYTES = 110e6  # of weights: a browser downloads and keeps them
# What the browser loads of onnxruntime-web: its functions, and the machine code for CPUs.
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Beside the policy of `mae serve`: the runtime compiles its machine code.
POLICY = playground.POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'")

MASKINGS = ("random", "block", "grid")  # that compute.js has too


class Runtime(NamedTuple):
    """npm's package onnxruntime-web: where its files lie, and its version."""

    dist: Path
    version: str


def find_runtime(named: str | None) -> Runtime:
    """The installed package.

    Args:
        named: its folder, or the node_modules that it is in; None: where node would look from here.

    Raises:
        UserError: it is not there, or a file of it is missing.
    """
    here = Path.cwd()
    places = [at / "node_modules" for at in (here, *here.parents)] if named is None else [named]
    folders = [Path(at) / below for at in places for below in ("", "onnxruntime-web")]
    for folder in folders:
        try:
            about = parse_json((folder / "package.json").read_bytes())
        except (OSError, ValueError):
            continue
        if not isinstance(about, dict) or about.get("name") != "onnxruntime-web":
            continue
        missing = [name for name in RUNTIME if not (folder / "dist" / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} has no dist/{missing[0]}: --to page was made for version 1.30 of "
                "onnxruntime-web: npm install onnxruntime-web@1.30"
            )
        return Runtime(folder / "dist", str(about.get("version")))
    where = "here or above" if named is None else f"in {named}"
    raise UserError(
        f"--to page copies files of onnxruntime-web, which is not {where}: npm install "
        "onnxruntime-web, or --onnxruntime-web FOLDER"
    )


def as_page(config: Export) -> Export:
    """The settings of an export whose graph a page can use.

    Raises:
        UserError: the run has no pictures, or the page no place for what is asked.
    """
    described = read_config(config.run)
    kind = kind_of(described)
    if kind != "mae" or config.only is not None or config.pool is not None:
        what = f"{config.run} holds a {kind}" if kind != "mae" else "--only or --pool leaves a part"
        raise UserError(f"--to page is for a whole MAE, and {what}: mae serve shows any run")
    if described["config"].get("noise"):
        raise UserError("--to page has no noise, with which this run was trained: use mae serve")
    encoder = described["model"]["encoder"]
    if encoder.get("channels", 3) not in (1, 3) or encoder.get("scaling") is not None:
        raise UserError("--to page shows images of 8 bits and 1 or 3 channels, not this run's")
    return replace(config, with_preprocessing=True)


def to_page(run: str, runtime: Runtime, subject: ExportInput, folder: Path) -> ExportResult:
    """The page with `model.onnx`, ONNX Runtime's files, and `manifest.json` with their sums.

    Args:
        run: the run folder.
        runtime: what runs the model in the browser.
        subject: what is exported.
        folder: where it goes.
    """
    size = sum(weight.numel() * weight.element_size() for weight in subject.weights.values())
    if size > MOST_BYTES:
        raise UserError(
            f"{size / 1e6:.0f} MB of weights are more than the {MOST_BYTES / 1e6:.0f} MB that a "
            "page should make a browser load: use mae serve"
        )
    made = to_onnx(subject, folder)
    about = playground.about(run, subject.model)
    about |= {"blocks": block_shapes(*subject.encoder.grid)}
    about |= {"bytes": (folder / "model.onnx").stat().st_size, "maskings": list(MASKINGS)}
    if about["masking"] not in MASKINGS:
        about["masking"] = "random"
    (folder / "about.json").write_text(json.dumps(about))
    for name, content in playground.files("browser.js").items():
        shown = playground.with_policy(content, POLICY) if name == "page.html" else content
        # Static servers show the file of this name for a folder.
        (folder / ("index.html" if name == "page.html" else name)).write_bytes(shown)
    for name in RUNTIME:
        copy(runtime.dist / name, folder / name)
    manifest = {
        "onnxruntime-web": {"version": runtime.version, "license": "MIT", "files": RUNTIME},
        "sha256": {file.name: sha256(file) for file in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return made
