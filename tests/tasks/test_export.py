"""Exports give the same outputs in their own library, load by the lines of their card, and come
back bit for bit."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import timm
import torch
from helpers.browser import Browser, needs_chromium
from PIL import Image
from safetensors.torch import load_file, save_file

import torchmae
from torchmae.cli import main
from torchmae.disk import sha256
from torchmae.errors import RunError, UserError
from torchmae.interop.exporting import EXPORTS, check, libraries
from torchmae.models.decoders import DecoderConfig
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.masking import Mask, mask_from_bool
from torchmae.models.vit import ViT
from torchmae.models.weights import load, load_classifier, load_mae
from torchmae.report.pictures import predict_pixels
from torchmae.runfolder import add_result, read_config
from torchmae.tasks.export import page
from torchmae.tasks.export.config import Export
from torchmae.tasks.export.page import RUNTIME, find_runtime
from torchmae.tasks.export.run import open_run
from torchmae.tasks.export.run import run as export_run
from torchmae.tasks.import_weights.config import Import
from torchmae.tasks.import_weights.run import run as bring


def vit(size=(16, 16), channels=3, heads=4, **options):
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.2, 0.3)[:channels]
    return ViT(
        size,
        options.pop("patch_size", 8),
        channels,
        embed_dim=64,
        depth=2,
        num_heads=heads,
        mlp_ratio=3.0,
        mean=mean,
        std=std,
        **options,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of every kind, with weights that are far from their initial values."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    models = {
        "mae": MAE(vit(), DecoderConfig("transformer", 32, 1, 2)),
        "pixels": MAE(vit(), DecoderConfig("transformer", 32, 1, 2), target="pixels"),
        "sparse": MAE(vit((80, 80)), DecoderConfig("transformer", 32, 1, 2)),
        "linear": MAE(vit(), DecoderConfig("linear", 32, 0, 0)),
        "pca": MAE(vit(), DecoderConfig("transformer", 32, 1, 2), target="pca"),
        "registers": vit(registers=4),
        "registered": Classifier(vit(registers=4), ("ant", "bee", "cat")),
        "oblong": vit(patch_size=(4, 8)),
        "scaled": vit(init_values=0.1),
        "scaled mae": MAE(vit(init_values=0.1), DecoderConfig("transformer", 32, 1, 2)),
        "wide": vit((16, 24)),
        "grey": vit(channels=1),
        "encoder": vit(),
        "mean": Classifier(vit(), ("ant", "bee", "cat")),
        "token": Classifier(vit(), ("ant", "bee", "cat"), "cls"),
        "probe": Classifier(vit(), ("ant", "bee", "cat"), "cls", batch_norm=True),
        "loud": Classifier(vit(), ("ant", "bee", "cat"), "cls"),
        "everywhere": MAE(vit(), DecoderConfig("transformer", 32, 1, 2), encode_all=True),
    }
    models["pca"].target.fit(torch.randn(500, 192))
    for name, model in models.items():
        with torch.no_grad():
            for value in (
                model.parameters()
            ):  # both signs: with a common offset float32 itself is coarser than 1e-5
                value.add_(torch.randn_like(value) * 0.05)
            for value in model.buffers():
                if value.is_floating_point():
                    value.add_(torch.rand_like(value))
            if name == "loud":
                model.head.weight.mul_(1000)
        prefix = "encoder." if isinstance(model, ViT) else ""
        about = {
            "torchmae": "0.1.0",
            "commit": None,
            "verb": "pretrain",
            "config": {"mask_ratio": 0.9 if name == "sparse" else 0.5, "epochs": 7},
        }
        about |= {"data": {"count": 123, "fingerprint": "f00d"}}  # type: ignore[dict-item]
        about |= {"model": {"encoder": model.config()} if prefix else model.config()}
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(about))
        save_file(
            {f"{prefix}{n}": v for n, v in model.state_dict().items()},
            folder / name / "model.safetensors",
        )
    return folder


def send(run, to, out, **options):
    return export_run(Export(str(run), to, str(out), **options))


def answer(lines, images):
    """What the lines of a card give for `images`: the value of the last variable."""
    scope = {"images": images}
    with torch.no_grad():
        exec("\n".join(lines), scope)
    value = scope[lines[-1].partition(" = ")[0]]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def lines_of(folder):
    """The lines of the card, for here: the card itself names the folder without the way to it."""
    card = (folder / "README.md").read_text()
    assert str(folder.parent) not in card
    lines = re.search(r"```python\n(.*?)\n```", card, re.S)[1]
    return re.sub(rf'(?<=[":]){folder.name}(?=["/])', str(folder), lines).splitlines()


GRAPHS = [("wide", "onnx"), ("mean", "onnx"), ("wide", "torch-export"), ("probe", "torch-export")]
SERVED = {  # with preprocessing
    "served-logits": ("mean", "onnx"),
    "served-features": ("mae", "onnx", "--only", "encoder"),
    "served-class-token": ("wide", "torch-export", "--pool", "cls"),
}
GOOD = [
    (kind, to)
    for kind in ("encoder", "wide", "mean", "probe", "grey", "scaled")
    for to in ("timm", "transformers", "torchvision")
] + [("registers", "timm"), ("registered", "timm"), ("oblong", "timm")]
BAD = {
    ("wide", "torchvision"): "takes square images only, not 16x24",
    ("grey", "torchvision"): "has 3 channels",
    ("mean", "torchvision"): "the class token's head, and this one pools the mean",
    ("mean", "transformers"): "this one pools the mean of the patches",
    ("registers", "transformers"): "has no register tokens: use --to timm",
    ("registers", "torchvision"): "has no register tokens: use --to timm",
    ("oblong", "transformers"): "takes square patches only: use --to timm",
    ("oblong", "torchvision"): "takes square patches only: use --to timm",
    ("linear", "transformers"): "has a decoder of blocks that predicts pixels, not linear and norm",
    ("pca", "transformers"): "not transformer and pca: add --only encoder, or use --to safetensors",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """npm's onnxruntime-web: where $ONNXRUNTIME_WEB or node would find it, else a stand-in that
    runs nothing."""
    try:
        return find_runtime(os.environ.get("ONNXRUNTIME_WEB")).dist.parent
    except UserError:
        folder = tmp_path_factory.mktemp("npm") / "node_modules" / "onnxruntime-web"
        (folder / "dist").mkdir(parents=True)
        about = {"name": "onnxruntime-web", "version": "stand-in"}
        (folder / "package.json").write_text(json.dumps(about))
        for name in RUNTIME:
            (folder / "dist" / name).write_text(name)
        return folder


@pytest.fixture(scope="module")
def graphs(runs, package, tmp_path_factory):
    """Graphs are made in a process of its own: what is traced must not have the tests' checks of
    shapes in it."""
    folder = tmp_path_factory.mktemp("graphs")
    code = "import sys\nfrom torchmae.cli import main\n"
    for kind, to in [*GRAPHS, ("loud", "torch-export")]:
        arguments = ["export", str(runs / kind), "--to", to, "--out", str(folder / f"{kind}-{to}")]
        code += f"assert main({arguments}) == 0\n"
    for name, (kind, to, *more) in SERVED.items():
        arguments = ["export", str(runs / kind), "--to", to, "--out", str(folder / name)]
        code += f"assert main({[*arguments, '--with-preprocessing', *more]}) == 0\n"
    for kind, to, *more in (
        ["mae", "onnx"],
        ["mae", "page", "--onnxruntime-web", str(package)],
    ):
        arguments = ["export", str(runs / kind), "--to", to, *more]
        arguments += ["--out", str(folder / f"{kind}-{to}")]
        code += f"assert main({arguments}) == 0\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("kind, to", [pair for pair in GOOD if pair not in BAD] + GRAPHS)
def test_the_lines_of_the_card_give_the_same(runs, tmp_path, capsys, request, kind, to):
    if (kind, to) in GRAPHS:
        folder, said = request.getfixturevalue("graphs")
        out = folder / f"{kind}-{to}"
    else:
        out = send(runs / kind, to, tmp_path / "out")
        said = capsys.readouterr().out
    lines = lines_of(out)
    assert all(f"  {line}" in said for line in lines)
    model = (
        load_classifier(runs / kind)
        if "classes" in read_config(runs / kind)["model"]
        else load(runs / kind)
    )
    for batch in (1, 3, 16):
        size = (batch, load(runs / kind).channels, *load(runs / kind).image_size)
        images = torch.randn(size, generator=torch.Generator().manual_seed(batch))
        expected, given = model(images), answer(lines, images)
        if to == "torchvision" and kind in ("encoder", "scaled"):
            expected = expected[:, 0]
        assert given.shape == expected.shape
        assert float((given - expected).abs().max()) <= (1e-4 if to == "onnx" else 1e-5)


@pytest.mark.parametrize("name", SERVED)
def test_a_graph_with_preprocessing_takes_pixels(runs, graphs, name):
    """The mean, the std and the pooling are in it: compared with numpy's own arithmetic."""
    kind, to = SERVED[name][:2]
    out, encoder = graphs[0] / name, load(runs / kind)
    card = (out / "README.md").read_text()
    assert "takes uint8 pixels, 0 to 255, and normalizes them itself" in card
    for batch in (1, 3):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, *encoder.image_size))
        mean, std = (np.array(v).reshape(3, 1, 1) for v in (encoder.mean, encoder.std))
        floats = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32))
        if name == "served-logits":
            expected = load_classifier(runs / kind)(floats)
        else:
            tokens = encoder(floats)
            expected = tokens[:, 1:].mean(1) if name == "served-features" else tokens[:, 0]
        given = answer(lines_of(out), torch.from_numpy(pixels.astype(np.uint8)))
        assert given.shape == expected.shape
        assert float((given - expected).abs().max()) <= (1e-4 if to == "onnx" else 1e-5)


@pytest.mark.parametrize("name", ["mean-onnx", "served-logits", "served-features"])
def test_onnx_names_its_axes_and_says_what_it_is(runs, graphs, name):
    import onnxruntime

    session = onnxruntime.InferenceSession(graphs[0] / name / "model.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert taken.name == "images" and taken.shape == ["batch", 3, 16, 16]
    assert taken.type == f"tensor({'float' if name == 'mean-onnx' else 'uint8'})"
    assert given.shape == ["batch", 64 if name == "served-features" else 3]
    about = session.get_modelmeta().custom_metadata_map
    assert about["output"] == ("features" if name == "served-features" else "logits")
    assert about["input"].startswith("uint8" if name != "mean-onnx" else "float32")
    assert about["input"].endswith("[batch, 3, 16, 16]") and "crop_pct" in about["resize"]
    read = {n: json.loads(about[n]) for n in ("image_size", "mean", "std", "crop_pct", "versions")}
    assert read["image_size"] == [16, 16] and read["crop_pct"] == 1.0
    assert (read["mean"], read["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.2, 0.3])
    assert read["versions"] == {"torchmae": torchmae.__version__, "torch": torch.__version__}
    assert about["run"] == ("mae" if name == "served-features" else "mean")
    assert about["trained_with"].startswith("torchmae 0.1.0") and about["weights"] == "last"
    if name == "served-features":
        assert "classes" not in about
    else:
        assert json.loads(about["classes"]) == ["ant", "bee", "cat"]


def test_torch_export_holds_the_same_description(graphs):
    more = {"torchmae.json": ""}
    torch.export.load(graphs[0] / "served-class-token" / "model.pt2", extra_files=more)
    assert json.loads(more["torchmae.json"])["image_size"] == "[16, 24]"


def test_preprocessing_goes_into_graphs_only(runs, tmp_path):
    for kind, to, options, words in [
        ("mean", "timm", {}, "timm has no graph .* use --to onnx or torch-export"),
        ("mae", "torch-export", {}, "add --only encoder"),
        ("mae", "onnx", {"pool": "cls"}, "a whole MAE returns pictures; its features: --only"),
        ("mean", "onnx", {"pool": "cls"}, "a classifier returns logits; its features: --only"),
        ("encoder", "onnx", {"pool": "max"}, "unknown pool 'max'"),
        ("encoder", "onnx", {"pool": "cls", "with_preprocessing": False}, "--pool cls: only"),
    ]:
        options = {"with_preprocessing": True} | options
        with pytest.raises(UserError, match=words):
            send(runs / kind, to, tmp_path / "out", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind, to", BAD)
def test_what_another_library_cannot_be_is_refused(runs, tmp_path, kind, to):
    with pytest.raises(UserError, match=BAD[kind, to]):
        send(runs / kind, to, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", ["timm", "torchvision", "torch-export"])
def test_a_decoder_has_no_place_there(runs, tmp_path, to):
    with pytest.raises(
        UserError, match=r"has no masked autoencoder: add --only encoder, or use --to transformers"
    ):
        send(runs / "mae", to, tmp_path / "out")
    assert os.listdir(tmp_path) == []


# The whole MAE as a graph, and as a page.


def masks_of_four(images: int):
    """Masks of 4 patches, each image its own: 1, 2 and 3 of them visible."""
    orders = [torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(images)]
    order = torch.stack(orders)
    return [Mask(order[:, :k], order[:, k:]) for k in (1, 2, 3)]


def run_graph(folder, images, mask):
    """The outputs of an MAE's graph by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    inputs = dict(zip(("images", "keep", "hide"), (images.numpy(), *(ids.numpy() for ids in mask))))
    names = [one.name for one in session.get_outputs()]
    return {name: torch.from_numpy(one) for name, one in zip(names, session.run(None, inputs))}


def test_the_whole_mae_in_onnx_takes_any_mask(runs, graphs):
    model, folder = load_mae(runs / "mae"), graphs[0] / "mae-onnx"
    for batch in (1, 2):
        images = torch.randn(batch, 3, 16, 16)
        for mask in masks_of_four(batch):
            given, own = run_graph(folder, images, mask), model(images, mask)
            torch.testing.assert_close(given["prediction"], own.prediction, rtol=0, atol=1e-4)
            torch.testing.assert_close(given["statistics"], own.statistics, rtol=0, atol=1e-4)
    assert answer(lines_of(folder), torch.randn(3, 3, 16, 16)).shape == (3, 2, 192)
    assert "statistics) has no place there" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["mae", "pca"])
def test_a_graph_of_pixels_gives_the_pictures_of_mae_reconstruct(runs, graphs, name):
    """As ONNX Runtime computes it; of PCA as it is before it becomes a graph."""
    model, folder = load_mae(runs / name), graphs[0] / "mae-page"
    module = check.Masked(model, True)

    def outputs(pixels, mask):
        if name == "mae":
            return run_graph(folder, pixels, mask)
        return dict(zip(module.outputs, module(pixels, *mask)))

    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8))
    kinds = {"reconstruction": False}
    kinds |= {"with_true_statistics": True} if name == "mae" else {}
    for mask in masks_of_four(2):
        given = outputs(pixels, mask)
        assert set(given) == {*kinds, "tokens"}
        for kind, leaks in kinds.items():
            shown = (given[kind] * 255).round().clamp(0, 255).int()
            own = predict_pixels(model, pixels, mask, leaks)[1].int()
            assert int((shown - own).abs().max()) <= 1
    everything = Mask(torch.arange(4).expand(2, -1), torch.zeros(2, 1, dtype=torch.int64))
    tokens = outputs(pixels, everything)["tokens"]
    own = model.encoder(model.encoder.normalize(pixels))[:, 1:]
    torch.testing.assert_close(tokens, own, rtol=0, atol=1e-4)


def test_the_page_is_whole_and_says_what_it_is_made_of(graphs, package):
    folder = graphs[0] / "mae-page"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name for path in folder.iterdir()} - {"manifest.json", "README.md"}
    assert set(manifest["sha256"]) == files
    for name, sum in manifest["sha256"].items():
        assert sha256(folder / name) == sum
    about = json.loads((package / "package.json").read_text())
    assert manifest["onnxruntime-web"]["version"] == about["version"]
    for name in manifest["onnxruntime-web"]["files"]:
        assert (folder / name).read_bytes() == (package / "dist" / name).read_bytes()
    html = (folder / "index.html").read_text()
    assert "Content-Security-Policy" in html and "'wasm-unsafe-eval'" in html
    facts = json.loads((folder / "about.json").read_text())
    assert facts["size"] == [16, 16] and facts["patches"] == 4 and facts["mask_ratio"] == 0.5
    assert facts["bytes"] == (folder / "model.onnx").stat().st_size


def test_runs_that_make_no_page(runs, package, tmp_path, monkeypatch):
    web = {"onnxruntime_web": str(package)}
    for kind, options, words in [
        ("mean", web, "is for a whole MAE, and .* holds a classifier: mae serve shows any run"),
        ("mae", web | {"only": "encoder"}, "--only or --pool leaves a part"),
        ("mae", {"onnxruntime_web": str(tmp_path)}, "is not in .*: npm install onnxruntime-web"),
        ("everywhere", web, "mask tokens in the encoder"),
    ]:
        with pytest.raises(UserError, match=words):
            send(runs / kind, "page", tmp_path / "out", **options)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not here or above: npm install onnxruntime-web, or --onn"):
        send(runs / "mae", "page", tmp_path / "out")
    with pytest.raises(UserError, match="--onnxruntime-web: for --to page"):
        send(runs / "mae", "timm", tmp_path / "out", **web)
    monkeypatch.setattr(page, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="MB of weights are more than .* use mae serve"):
        send(runs / "mae", "page", tmp_path / "out", **web)
    old = shutil.copytree(package, tmp_path / "old")
    (old / "dist" / RUNTIME[0]).unlink()
    with pytest.raises(UserError, match=f"has no dist/{RUNTIME[0]}"):
        send(runs / "mae", "page", tmp_path / "out", onnxruntime_web=str(old))
    assert os.listdir(tmp_path) == ["old"]


@needs_chromium
def test_the_page_runs_the_model_in_a_browser(runs, graphs, package, tmp_path):
    """From a static server, with a real click: the same pixels as torch's."""
    if json.loads((package / "package.json").read_text())["version"] == "stand-in":
        pytest.skip("onnxruntime-web is not installed: npm install onnxruntime-web, or its folder")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(graphs[0] / "mae-page"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, Browser() as browser:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        tab = browser.tab(f"http://127.0.0.1:{server.server_port}/")
        tab.wait("document.getElementById('status').textContent.startsWith('Choose')")
        tab.choose_file("#file", tmp_path / "image.png")
        tab.wait("document.getElementById('status').textContent.startsWith('Reconstructed')")
        assert tab.text("#counts").startswith("2 of 4 patches are hidden")
        before = tab.value("document.getElementById('made').toDataURL()")
        tab.click("#mask", 0.25, 0.25)
        tab.wait("!document.getElementById('counts').textContent.startsWith('2 of')")
        count = tab.text("#counts")[0]
        tab.wait(f"document.getElementById('made').toDataURL() !== '{before}'")
        shown = tab.value(
            "[...document.getElementById('made').getContext('2d').getImageData(0, 0, 16, 16).data]"
        )
        gray = [
            tab.value(
                f"document.getElementById('mask').getContext('2d').getImageData({at}).data[0]"
            )
            for at in ("100, 100, 1, 1", "500, 100, 1, 1", "100, 500, 1, 1", "500, 500, 1, 1")
        ]
        assert tab.complaints() == []
        server.shutdown()
    hidden = torch.tensor([value == 128 for value in gray])
    assert int(hidden.sum()) == int(count)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    made = predict_pixels(load_mae(runs / "mae"), images, mask_from_bool(hidden[None]))[1][0]
    given = np.reshape(shown, (16, 16, 4))[..., :3]
    assert np.abs(given - made.permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["mae", "pixels"])
def test_the_whole_mae_in_transformers(runs, tmp_path, kind):
    from transformers import ViTMAEForPreTraining

    out = send(runs / kind, "transformers", tmp_path / "out")
    theirs, ours = ViTMAEForPreTraining.from_pretrained(out).eval(), load_mae(runs / kind)
    images, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 4)
    order = noise.argsort(1)
    mine, other = ours(images, Mask(order[:, :2], order[:, 2:])), theirs(images, noise=noise)
    torch.testing.assert_close(mine.loss, other.loss, rtol=1e-5, atol=1e-5)
    expected = other.logits[torch.arange(3).unsqueeze(1), order[:, 2:]]
    torch.testing.assert_close(mine.prediction, expected, rtol=0, atol=1e-5)
    assert theirs.config.norm_pix_loss == (kind == "mae") and theirs.config.mask_ratio == 0.5
    names = set(
        load_file(out / "model.safetensors")
    )  # those of the hub, which old versions read too
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in names
    assert "vit.encoder.layer.0.attention.output.dense.weight" in names
    assert answer(lines_of(out), images).shape == (3, 4, 192)


def test_layer_scale_is_folded_where_there_is_none(runs, tmp_path):
    """transformers' ViTMAE and torchvision's ViT get the same function, without its tensors."""
    out = send(runs / "scaled mae", "transformers", tmp_path / "out")
    assert not [n for n in load_file(out / "model.safetensors") if "scale" in n or ".ls" in n]
    folded = load_mae(bring(Import(str(out), str(tmp_path / "back"))))
    scaled, images = load_mae(runs / "scaled mae"), torch.randn(2, 3, 16, 16)
    assert scaled.encoder.init_values == 0.1 and folded.encoder.init_values is None
    torch.testing.assert_close(folded.encoder(images), scaled.encoder(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["mae", "mean", "probe"])
def test_only_the_encoder(runs, tmp_path, kind):
    out = send(runs / kind, "timm", tmp_path / "out", only="encoder")
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(
        answer(lines_of(out), images), load(runs / kind)(images), rtol=0, atol=1e-5
    )
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    if kind != "mae":
        pooled = load_classifier(runs / kind).features(images)
        torch.testing.assert_close(again(images), pooled, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="--only head: encoder is the only part"):
        send(runs / kind, "timm", tmp_path / "other", only="head")


ROUNDS = [
    ("mae", "transformers"),
    ("pixels", "transformers"),
    ("token", "transformers"),
    ("encoder", "transformers"),
]
ROUNDS += [("sparse", "transformers")]  # 9 of 100 patches at 0.9, where decimals say 10
ROUNDS += [("mean", "timm"), ("token", "timm"), ("wide", "timm"), ("grey", "timm")]
ROUNDS += [(kind, "safetensors") for kind in ("mae", "pixels", "wide", "mean", "probe", "grey")]
ROUNDS += [("registers", "timm"), ("registered", "timm"), ("oblong", "timm"), ("scaled", "timm")]
ROUNDS += [("scaled mae", "safetensors")]
ROUNDS += [(kind, "safetensors") for kind in ("linear", "pca", "registers", "registered", "oblong")]


@pytest.mark.parametrize("kind, to", ROUNDS)
def test_import_export_import_is_identical(runs, tmp_path, kind, to):
    def source(folder):
        return str(folder / "model.safetensors" if to == "safetensors" else folder)

    first = bring(Import(source(send(runs / kind, to, tmp_path / "a")), str(tmp_path / "first")))
    second = bring(Import(source(send(first, to, tmp_path / "b")), str(tmp_path / "second")))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert read_config(first)["model"] == read_config(second)["model"]
    original, found = (
        load_file(runs / kind / "model.safetensors"),
        load_file(first / "model.safetensors"),
    )
    if kind.startswith("regist") and to == "timm":  # the class token's position is part of it there
        row = original["encoder.pos_embed"][:, :1].clone()
        original["encoder.cls_token"] += row
        original["encoder.pos_embed"][:, :1] -= row
    for name, value in original.items():
        if name.startswith("decoder.statistics."):
            assert not found[name].any()  # no other library has this head
        else:
            assert torch.equal(value, found[name])
    assert found.keys() == original.keys()
    assert read_config(first)["model"] == read_config(runs / kind)["model"]


@pytest.mark.parametrize("kind", ["encoder", "token"])
def test_torchvision_comes_back_too(runs, tmp_path, kind):
    """Its files say neither heads nor pixels nor the names of classes."""
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n")
    said = dict(heads=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), classes=str(names))
    first, second = runs / kind, None
    for step in ("first", "second"):
        file = (
            send(first if second is None else second, "torchvision", tmp_path / f"{step}-out")
            / "model.safetensors"
        )
        second = bring(Import(str(file), str(tmp_path / step), **said))
        original, found = (
            load_file(first / "model.safetensors"),
            load_file(second / "model.safetensors"),
        )
        assert found.keys() == original.keys() and all(
            torch.equal(value, found[n]) for n, value in original.items()
        )
        assert read_config(second)["model"] == read_config(first)["model"]


def test_a_run_that_was_trained(run, tmp_path):
    out = send(run, "timm", tmp_path / "out", only="encoder")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(answer(lines_of(out), images), load(run)(images), rtol=0, atol=1e-5)
    card = (out / "README.md").read_text()
    assert "images: 24" in card and "* epochs: 3" in card and "None were measured." in card
    assert "(encoder)" in card and str(run.parent) not in card  # no private paths


def test_registers_have_timm_s_names_and_layout(runs, tmp_path):
    """Those of its vit_*_reg4_* models: positions of the patches alone, `no_embed_class`."""
    out = send(runs / "registers", "timm", tmp_path / "out")
    weights = load_file(out / "model.safetensors")
    about = json.loads((out / "config.json").read_text())
    named = timm.create_model(
        about["architecture"],
        **dict(class_token=True, global_pool="token", num_classes=0),
        **dict(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=4, mlp_ratio=3.0),
    ).eval()
    assert "reg4" in about["architecture"]
    named.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 16, 16)
    expected = load(runs / "registers")(images)
    torch.testing.assert_close(named.forward_features(images), expected, rtol=0, atol=1e-5)


def test_the_card(runs, tmp_path):
    add_result(runs / "token", "evaluate", {}, {"top1": 87.5})
    out = send(runs / "token", "safetensors", tmp_path / "out")
    (runs / "token" / "results.json").unlink()
    card = (out / "README.md").read_text()
    for words in (
        "images: 123",
        "f00d",
        "* epochs: 7",
        '"top1": 87.5',
        "Classes: ant, bee, cat.",
        "License",
        "0.4",
    ):
        assert words in card
    assert f"* model.safetensors: `{sha256(out / 'model.safetensors')}`" in card
    assert (
        os.stat(out / "model.safetensors").st_mode & 0o777
        == os.stat(out / "README.md").st_mode & 0o777
    )


def test_the_card_tells_no_absolute_paths(runs, tmp_path):
    told = {
        "run": "/home/me/runs/a",
        "data": "hf:/home/me/set?split=test",
        "val": "digits?part=test",
        "top1": 0.5,
    }
    told |= {
        "torchvision": "torchvision:CIFAR10?root=/home/me/data&train=true",
        "from": "https://host/home",
    }
    told |= {
        "command": "mae evaluate /home/me/runs/a",
        "list": [{"map": "~me/my maps/names.json"}],
        "class": "n/a",
    }
    add_result(runs / "token", "evaluate", told, {})
    config = (runs / "token" / "config.json").read_text()
    (runs / "token" / "config.json").write_text(
        config.replace('"epochs": 7', '"data": "hf:/home/me/x", "epochs": 7')
    )
    try:
        card = (send(runs / "token", "timm", tmp_path / "out") / "README.md").read_text()
    finally:
        (runs / "token" / "results.json").unlink()
        (runs / "token" / "config.json").write_text(config)
    expected = {
        **told,
        "run": "a",
        "data": "hf:set?split=test",
        "torchvision": "torchvision:CIFAR10?root=data&train=true",
    }
    expected |= {"command": "mae evaluate a", "list": [{"map": "names.json"}]}
    (record,) = json.loads(re.search(r"```json\n(.*?)\n```", card, re.S)[1])
    assert record["settings"] == expected
    assert (
        "/home/me" not in card
        and str(tmp_path) not in card
        and "* data: hf:x" in card
        and "local-dir:out" in card
    )


def test_lines_of_a_relative_folder_stay(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    send(runs / "encoder", "timm", "made/out")
    assert '"local-dir:made/out"' in (tmp_path / "made/out/README.md").read_text()


@pytest.fixture
def tuned(runs, tmp_path):
    """A fine-tuned run: its best epoch has other weights than its last, and it is measured on the
    middle of images."""
    shutil.copytree(runs / "mean", tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned/model.safetensors")
    save_file({n: w + 0.01 for n, w in weights.items()}, tmp_path / "tuned/best.safetensors")
    about = json.loads((tmp_path / "tuned/config.json").read_text())
    about["config"]["crop_pct"] = 0.75
    (tmp_path / "tuned/config.json").write_text(json.dumps(about))
    return tmp_path / "tuned"


@pytest.mark.parametrize("only", [None, "encoder"])
def test_the_best_epoch(tuned, tmp_path, only):
    images = torch.randn(2, 3, 16, 16)
    best, last = load_classifier(tuned, best=True), load_classifier(tuned)
    expected, other = (m.encoder(images) if only else m(images) for m in (best, last))
    out = send(tuned, "timm", tmp_path / "out", best=True, only=only)
    given = answer(lines_of(out), images)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(given, other, atol=1e-4)
    assert "weights of the epoch that was best" in (out / "README.md").read_text()


def test_only_fine_tuning_keeps_a_best_epoch(runs, tmp_path):
    with pytest.raises(UserError, match=r"has no best\.safetensors: only mae finetune"):
        send(runs / "mae", "transformers", tmp_path / "out", best=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", ["timm", "safetensors"])
def test_the_crop_of_evaluation_goes_along(tuned, tmp_path, to):
    out = send(tuned, to, tmp_path / "out")
    if to == "timm":
        assert (
            timm.create_model(f"local-dir:{out}", pretrained=True).pretrained_cfg["crop_pct"]
            == 0.75
        )
    again = bring(
        Import(str(out if to == "timm" else out / "model.safetensors"), str(tmp_path / "again"))
    )
    assert read_config(again)["config"]["crop_pct"] == 0.75


@pytest.mark.parametrize("to", [to for to in EXPORTS if to not in ("onnx", "torch-export")])
def test_an_export_that_differs_leaves_nothing(runs, tmp_path, monkeypatch, to):
    """The file is spoilt on its way: what is reloaded is another model."""
    save = libraries.save

    def spoil(weights, *rest):
        name = next(n for n in weights if n.endswith(("norm.bias", "layernorm.bias", "ln.bias")))
        save({**weights, name: weights[name] + 1e-3}, *rest)

    monkeypatch.setattr(libraries, "save", spoil)
    with pytest.raises(
        RunError, match=r"reloaded, the export differs by .*e-0\d .*: nothing written"
    ):
        send(runs / "encoder", to, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", ["timm", "transformers", "torchvision", "torch-export"])
def test_the_tolerance_is_absolute_and_large_outputs_are_held_against_it_in_float64(
    runs, tmp_path, capsys, monkeypatch, request, to
):
    """float32 rounds outputs of 1000 more coarsely than 1e-5, in any order of the same sums; a
    wrong model is still refused."""
    if to == "torch-export":
        said = request.getfixturevalue("graphs")[1].partition("loud-torch-export: ")[2]
    else:
        send(runs / "loud", to, tmp_path / "out")
        said = capsys.readouterr().out
    first = re.match(r".*they differ by at most (\S+?)(\.| in)", said)
    if float(first[1]) > 1e-5:
        words = re.search(
            r"(\S+) in float32 \(outputs go up to (\d+)\) and by (\S+) in float64\.", said
        )
        assert int(words[2]) > 100 and float(words[1]) > 1e-5 > 1e-9 > float(words[3])
    if to != "torch-export":
        save = libraries.save

        def spoil(
            weights, *rest
        ):  # by a millionth of what is largest, which float32 alone could not tell from rounding
            name = next(
                n
                for n in weights
                if n.endswith(("head.bias", "classifier.bias", "heads.head.bias"))
            )
            save({**weights, name: weights[name] + 1e-3}, *rest)

        monkeypatch.setattr(libraries, "save", spoil)
        with pytest.raises(
            RunError, match=r"differs by 1\.0e-03 \(allowed: 1e-05\): nothing written"
        ):
            send(runs / "loud", to, tmp_path / "other")


def test_outputs_that_are_no_numbers_are_no_match(runs, tmp_path, monkeypatch):
    made = check.ExportResult(
        lambda images: torch.full((len(images), 3), torch.nan), [], None, batches=(1, 3, 16)
    )
    with pytest.raises(RunError, match="differs by nan"), torch.no_grad():
        check.compare(open_run(Export(str(runs / "token"), "onnx", str(tmp_path / "out"))), made)


def test_mask_tokens_in_the_encoder_are_known_to_no_other_library(runs, tmp_path):
    with pytest.raises(UserError, match="mask tokens in the encoder .* add --only encoder"):
        send(runs / "everywhere", "transformers", tmp_path / "out")
    out = send(runs / "everywhere", "timm", tmp_path / "out", only="encoder")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        answer(lines_of(out), images), load(runs / "everywhere")(images), rtol=0, atol=1e-5
    )


def test_mistakes(runs, tmp_path):
    with pytest.raises(UserError, match=r"unknown form 'onx'. Did you mean onnx"):
        send(runs / "encoder", "onx", tmp_path / "out")
    with pytest.raises(UserError, match="is not a run folder"):
        send(tmp_path / "none", "timm", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thing").touch()
    with pytest.raises(UserError, match="is not an empty folder"):
        send(runs / "encoder", "timm", tmp_path / "full")
    with pytest.raises(UserError, match="is not an empty folder"):
        send(runs / "encoder", "timm", tmp_path / "full/thing")
    assert (
        main(
            ["export", str(runs / "encoder"), "--to", "safetensors", "--out", str(tmp_path / "out")]
        )
        == 0
    )
    with pytest.raises(
        UserError, match="the norm of this encoder belongs to its classifier's pooling"
    ):
        send(runs / "mean", "safetensors", tmp_path / "other", only="encoder")


def test_a_missing_library_is_one_line(runs, tmp_path):
    needs = {
        "timm": "timm",
        "transformers": "transformers",
        "torchvision": "torchvision",
        "onnx": "onnxruntime",
    }
    code = "import sys\n"
    for package in needs.values():
        code += f"sys.modules['{package}'] = None\n"
    code += "from torchmae.cli import main\n"
    for to in needs:
        arguments = ["export", str(runs / "encoder"), "--to", to, "--out", str(tmp_path / "out")]
        code += f"assert main({arguments}) == 2\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    hints = [
        f'mae: this needs the package "{p}": pip install "torchmae[{to}]"'
        for to, p in needs.items()
    ]
    assert done.stderr.splitlines() == hints and done.returncode == 0
    assert os.listdir(tmp_path) == []
