"""mae serve: who may ask, what is refused in a line, what is answered; a browser that clicks."""

import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.browser import Browser, needs_chromium
from helpers.mae import tiny
from PIL import Image
from safetensors.torch import save_file

import torchmae
from torchmae.data.config import DecodeOptions
from torchmae.data.decode import decode
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError
from torchmae.models.detection.detector import Detector
from torchmae.models.encoders import build_encoder
from torchmae.models.masking import Mask, MaskGenerator
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.models.weights import load_mae
from torchmae.report.pictures import draw_mask, predict_pixels
from torchmae.runfolder import read_config
from torchmae.settings.options import changed
from torchmae.tasks.serve import server as server_module
from torchmae.tasks.serve.config import Serve
from torchmae.tasks.serve.run import opened
from torchmae.tasks.serve.server import Server


@contextmanager
def serving(run: Path, **options: Any) -> Iterator[Server]:
    """A server that answers, on any free port."""
    with opened(changed(Serve(str(run), port=0), **options)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[Server]:
    with serving(run, max_upload=0.2, device="cpu") as server:
        yield server


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        assert self.body.count(b"\n") == 1  # a line
        return json.loads(self.body)


def ask(server: Server, name: str, body: bytes | None = None, **headers: str) -> Answer:
    """A request as the page makes it; headers are replaced, and left out where they are ""."""
    host = f"127.0.0.1:{server.server_port}"
    own = {"Host": host}
    if body is not None:
        own |= {"Origin": f"http://{host}", "Content-Length": str(len(body))}
    own = {**own, **{name.replace("_", "-"): value for name, value in headers.items()}}
    path = name if name.startswith("/") else f"/{server.token}/{name}"
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest("GET" if body is None else "POST", path, skip_host=True)
    for header, value in own.items():
        if value:
            connection.putheader(header, value)
    connection.endheaders()
    if body:
        connection.send(body)
    reply = connection.getresponse()
    answer = Answer(reply.status, reply.headers, reply.read())
    connection.close()
    return answer


def refused(server: Server, status: int, name: str, *body: bytes, **headers: str) -> str:
    """Why a request is refused."""
    answer = ask(server, name, *body, **headers)
    assert answer.status == status
    return answer.json["error"]


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pixels_of(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(b64decode(text), np.uint8).reshape(shape)


# Who may ask.


def test_the_page_and_its_headers(page: Server) -> None:
    for name, kind in [("", "html"), ("page.js", "javascript"), ("page.css", "css")]:
        answer = ask(page, name)
        assert answer.status == 200 and kind in answer.headers["Content-Type"]
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert ask(page, "", Host=f"LOCALHOST:{page.server_port}").status == 200
    assert "Python" not in answer.headers["Server"]


def test_without_the_token_nothing_is_there(page: Server) -> None:
    other = page.token[:-1] + ("a" if page.token[-1] != "a" else "b")
    for path in (
        "/",
        "/about",
        f"/{other}/",
        f"/{page.token}x/about",
    ):
        assert "address that mae serve printed" in refused(page, 404, path)
    assert len(page.token) >= 20
    assert "address that" in refused(page, 404, f"/{other}/image", picture(0))


def test_other_hosts_and_other_origins_are_refused(page: Server) -> None:
    own = f"127.0.0.1:{page.server_port}"
    for host in ("evil.example", "127.0.0.1", f"evil.example:{page.server_port}", ""):
        assert "127.0.0.1 alone" in refused(page, 403, "about", Host=host)
    for origin in ("http://evil.example", "null", f"https://{own}", "http://127.0.0.1:1", ""):
        assert "only the page" in refused(page, 403, "image", picture(0), Origin=origin)
    assert ask(page, "image", picture(0)).status == 200


def test_no_path_of_a_client_is_opened(page: Server) -> None:
    for name in ("../config.json", "/etc/passwd", "..%2fpage.js", "server.js", "static/page.js"):
        path = f"/{page.token}/{name}"
        assert ask(page, path).status == 404
    assert "Unsupported method" in raw(page, f"PUT /{page.token}/ HTTP/1.0\r\n\r\n")
    assert "Bad request" in raw(page, "nonsense\r\n\r\n")
    host = f"Host: 127.0.0.1:{page.server_port}\r\n"
    for path in ("/\xe9/", "http://[/", "*", f"/{page.token}"):
        assert "address that" in raw(page, f"GET {path} HTTP/1.0\r\n{host}\r\n"), path
    assert "alone" in raw(page, f"GET /{page.token}/ HTTP/1.0\r\n{host}{host}\r\n")


def raw(server: Server, text: str) -> str:
    """What comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), 30) as connection:
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


# What is refused in a line, and the server goes on.


def bomb() -> bytes:
    """A PNG of a gigapixel in 60 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = (40_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_uploads_that_are_no_images(page: Server) -> None:
    whole = picture(1)
    for data, words in [
        (b"", "empty file"),
        (b"<svg onload=alert(1)>", "not an image"),
        (whole[: len(whole) // 2], "truncated PNG"),
        (bomb(), "1600.0 megapixels, more than the limit"),
    ]:
        assert words in refused(page, 400, "image", data)
    assert "--max-upload" in refused(page, 413, "image", bytes(300_000))
    assert "--max-upload" in refused(page, 413, "image", b"", Content_Length="9" * 30)
    assert "Content-Length" in refused(page, 411, "image", b"", Content_Length="")
    assert "Content-Length" in refused(page, 411, "image", b"", Content_Length="-1")
    assert ask(page, "image", whole).status == 200


def test_requests_that_are_none(page: Server) -> None:
    good: dict[str, Any] = {
        "pixels": b64encode(bytes(32 * 32 * 3)).decode(),
        "hidden": [1],
        "true_statistics": False,
    }
    cases: list[tuple[dict[str, Any], str]] = [
        ({"hidden": [16]}, "below 16"),
        ({"hidden": [-1]}, "below 16"),
        ({"hidden": list(range(16))}, "not all of them"),
        ({"hidden": []}, "no patch is hidden"),
        ({"hidden": [True]}, "pixels in base64"),
        ({"hidden": "1"}, "pixels in base64"),
        ({"pixels": "AAAA"}, "3 pixel values, not 32 x 32 x 3"),
        ({"pixels": "?"}, "0 pixel values"),
        ({"path": "/etc/passwd"}, "pixels in base64"),
    ]
    for wrong, words in cases:
        assert words in refused(page, 400, "reconstruct", json.dumps({**good, **wrong}).encode())
    for text in (b"", b"[" * 100_000, b"7"):
        assert "pixels in base64" in refused(page, 400, "reconstruct", text)
    for query, words in [
        ("masking=random&ratio=0.5", "masking, ratio and seed"),
        ("masking=random&ratio=x&seed=0", "masking, ratio and seed"),
        ("masking=random&ratio=nan&seed=0", "within 0 to 1"),
        ("masking=random&ratio=1&seed=0", "at least one"),
        ("masking=blok&ratio=0.5&seed=0", "Did you mean block"),
        (f"masking=random&ratio=0.5&seed={10**30}", "a seed from 0"),
    ]:
        assert words in refused(page, 400, f"mask?{query}")
    assert ask(page, "reconstruct", json.dumps(good).encode()).status == 200


def test_closed_tabs_and_stalled_uploads_disturb_nobody(
    page: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    data = picture(2)
    head = f"POST /{page.token}/image HTTP/1.0\r\nHost: 127.0.0.1:{page.server_port}\r\n"
    head += f"Origin: http://127.0.0.1:{page.server_port}\r\n"
    for body in (data, data[:100]):  # closed before the answer, and within the upload
        with socket.create_connection(("127.0.0.1", page.server_port)) as connection:
            sent = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + body
            connection.sendall(sent)
            if body is data:  # nobody reads the answer: the connection is reset
                linger = (1).to_bytes(4, sys.byteorder) + bytes(4)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    with socket.create_connection(("127.0.0.1", page.server_port)):  # says nothing at all
        assert ask(page, "image", data).status == 200
    time.sleep(0.2)
    told = capfd.readouterr()
    assert "Traceback" not in told.err and "failed" not in told.out + told.err


def test_two_browsers_at_once_get_their_own_answers(page: Server) -> None:
    images = [picture(seed) for seed in range(8)]
    answers: dict[int, Any] = {}

    def upload(seed: int) -> None:
        answers[seed] = ask(page, "image", images[seed]).json["pixels"]

    threads = [threading.Thread(target=upload, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crop = CenterCropResize((32, 32))
    for seed, image in enumerate(images):
        expected = crop(decode(image))[0].permute(1, 2, 0).numpy()
        assert np.array_equal(pixels_of(answers[seed], 32, 32, 3), expected)


# What is answered.


def test_masks_and_reconstructions_are_those_of_mae_reconstruct(page: Server, run: Path) -> None:
    model = load_mae(run)
    found = ask(page, "image", picture(3)).json
    assert (found["height"], found["width"]) == (50, 40)
    tokens = np.frombuffer(b64decode(found["tokens"]), np.float32).reshape(16, -1)
    images = torch.from_numpy(pixels_of(found["pixels"], 32, 32, 3).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        own = model.encoder(model.encoder.normalize(images))[0, 1:]
    assert np.allclose(tokens, own.numpy(), atol=1e-5)
    for masking, ratio, seed in (("random", 0.75, 4), ("block", 0.5, 2)):
        mask = draw_mask(model, MaskGenerator(masking, ratio), seed, torch.tensor([0]))
        hidden = ask(page, f"mask?masking={masking}&ratio={ratio}&seed={seed}").json["hidden"]
        assert hidden == sorted(mask.hide[0].tolist())
        for leaks in (False, True):
            asked = {"pixels": found["pixels"], "hidden": hidden, "true_statistics": leaks}
            made = ask(page, "reconstruct", json.dumps(asked).encode()).json
            expected = predict_pixels(model, images, mask, leaks)
            for name, one in zip(("seen", "reconstruction"), expected):
                given = pixels_of(made[name], 32, 32, 3).astype(int)
                assert np.abs(given - one[0].permute(1, 2, 0).numpy()).max() <= 1


def test_nearest_images(run: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.npz"
    torchmae.embed(run, photos, out=file, device="cpu")
    with serving(run, features=str(file), device="cpu") as server:
        nearest = ask(server, "image", (photos / "down" / "2.jpg").read_bytes()).json["neighbors"]
    assert len(nearest) == 8 and nearest[0]["name"] == "2.jpg"
    assert nearest[0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert all(one["picture"].startswith("data:image/jpeg;base64,") for one in nearest)
    torchmae.embed(run, photos, out=tmp_path / "early.npz", device="cpu", layer=1)
    np.savez(tmp_path / "other.npz", paths=["gone.jpg"], features=np.ones((1, 4), np.float32))
    (tmp_path / "broken.npz").write_bytes(file.read_bytes()[:1000])
    for name, words in [
        ("early.npz", "has other features with this run"),
        ("other.npz", "1 of its 1 images are not there (gone.jpg): .* --data"),
        ("broken.npz", "cannot be read"),
        ("none.npz", "No such file"),
        ("f.csv", "a .npz file"),
    ]:
        with pytest.raises(UserError, match=words.replace("(", "[(]").replace(")", "[)]")):
            opened(Serve(str(run), features=str(tmp_path / name)))
    with pytest.raises(UserError, match="--data goes with --features"):
        opened(Serve(str(run), data=str(photos)))


def test_classes_of_a_classifier(classifier: Path, photos: Path) -> None:
    with serving(classifier, device="cpu") as server:
        found = ask(server, "image", (photos / "down" / "2.jpg").read_bytes()).json["classes"]
        assert not ask(server, "about").json["pictures"]
        asked = {"pixels": "", "hidden": [1], "true_statistics": False}
        words = refused(server, 400, "reconstruct", json.dumps(asked).encode())
        assert "does not predict pixels" in words
    model = torchmae.load_classifier(classifier)
    pixels = decode((photos / "down" / "2.jpg").read_bytes(), DecodeOptions())
    image = CenterCropResize((32, 32), read_config(classifier)["config"]["crop_pct"])(pixels)[0]
    with torch.no_grad():
        own = model(model.encoder.normalize(image[None]))[0].softmax(0)
    assert {one["name"]: pytest.approx(one["probability"], abs=1e-4) for one in found} == dict(
        zip(model.classes, own.tolist())
    )
    assert found[0]["probability"] == max(one["probability"] for one in found)


def dense_run(folder: Path, run: Path, kind: str) -> Path:
    """A run of a segmenter or a detector with random weights."""
    torch.manual_seed(0)
    encoder = build_encoder(read_config(run)["model"]["encoder"])
    if kind == "segmenter":
        model: Any = Segmenter(
            encoder, ("background", "thing"), "linear", colors=((0, 0, 0), (9, 99, 9))
        )
    else:
        model = Detector(encoder, ("thing",), width=16)
    write_run(folder, model.config(), model.state_dict())
    return folder


def write_run(
    folder: Path, model: dict[str, Any], weights: dict[str, torch.Tensor], **settings: Any
) -> None:
    """A run folder without a manifest."""
    about = {"torchmae": "0.1.0", "verb": "import", "config": settings, "model": model}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about))
    stored = {name: value.contiguous().clone() for name, value in weights.items()}
    save_file(stored, folder / "model.safetensors")


def test_masks_of_a_segmenter_and_boxes_of_a_detector(run: Path, tmp_path: Path) -> None:
    folder = dense_run(tmp_path / "segmenter", run, "segmenter")
    with serving(folder, device="cpu") as server:
        found = ask(server, "image", picture(0)).json["found"]
        assert "over 8 times" in refused(server, 400, "image", picture(0, (4, 200)))
    shown = Image.open(
        io.BytesIO(b64decode(found["picture"].removeprefix("data:image/png;base64,")))
    )
    assert shown.size == (40, 50)
    shares = [float(one["says"].partition("%")[0]) for one in found["legend"]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    pytest.importorskip("torchvision")
    folder = dense_run(tmp_path / "detector", run, "detector")
    with serving(folder, device="cpu", min_score=0.0) as server:
        found = ask(server, "image", picture(0)).json["found"]
    assert found["picture"].startswith("data:image/png;base64,")
    assert all(one["name"] == "thing" and "score" in one["says"] for one in found["legend"])


def test_a_gray_denoising_autoencoder_need_hide_nothing(tmp_path: Path) -> None:
    model = tiny(channels=1, target="pixels", loss_on="all")
    folder = tmp_path / "noise"
    write_run(folder, model.config(), model.state_dict(), mask_ratio=0.0, noise=0.5)
    with serving(folder, device="cpu") as server:
        assert not ask(server, "about").json["statistics"]
        found = ask(server, "image", picture(0)).json
        asked = {"pixels": found["pixels"], "hidden": [], "true_statistics": False}
        made = ask(server, "reconstruct", json.dumps(asked).encode()).json
    pixels, seen, own = (
        pixels_of(one, 1, 1, 16, 16)
        for one in (found["pixels"], made["seen"], made["reconstruction"])
    )
    images = torch.from_numpy(pixels.copy())
    mask = Mask(torch.arange(16)[None], torch.empty(1, 0, dtype=torch.int64))
    expected = predict_pixels(load_mae(folder), images, mask, noise_std=0.5)
    assert np.array_equal(seen, expected[0]) and np.abs(seen - pixels.astype(int)).mean() > 10
    assert np.abs(own.astype(int) - expected[1].numpy()).max() <= 1


# How it starts and ends.


def test_a_port_in_use(page: Server, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = page.server_port
    with pytest.raises(UserError, match=rf"port {taken} is in use: another --port, or leave it"):
        server_module.open_server(taken, page.answers, 1)
    monkeypatch.setattr(server_module, "PORTS", [taken, 0])
    with server_module.open_server(None, page.answers, 1) as other:
        assert other.server_port != taken and other.token != page.token
    monkeypatch.setattr(server_module, "PORTS", [taken])
    with pytest.raises(UserError, match="in use: --port NUMBER"):
        server_module.open_server(None, page.answers, 1)


def test_runs_that_cannot_be_served(run: Path, tmp_path: Path) -> None:
    half = shutil.copytree(run, tmp_path / "half")
    (half / "model.safetensors").unlink()
    damaged = shutil.copytree(run, tmp_path / "damaged")
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    for folder, words in [
        (half, "holds no weights yet"),
        (damaged, "is not what torchmae wrote"),
        (tmp_path / "none", "no run folder|not a run|no config"),
    ]:
        with pytest.raises(UserError, match=words):
            opened(Serve(str(folder)))
    with pytest.raises(UserError, match="keeps no best weights"):
        opened(Serve(str(run), best=True))
    many = build_encoder(
        {**read_config(run)["model"]["encoder"], "channels": 5, "mean": None, "std": None}
    )
    bands = tmp_path / "bands"
    planted = {f"encoder.{name}": value for name, value in many.state_dict().items()}
    write_run(bands, {"encoder": many.config()}, planted)
    with pytest.raises(UserError, match="takes 5 channels, and a page shows images of 1 or 3"):
        opened(Serve(str(bands)))


@needs_chromium
def test_a_browser_with_real_clicks(run: Path, photos: Path, tmp_path: Path) -> None:
    """The command in a process of its own, which Ctrl-C ends."""
    command = [sys.executable, "-u", "-m", "torchmae", "serve", str(run), "--device", "cpu"]
    with (
        subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process,
        Browser() as browser,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().partition("open ")[2].strip()
        tab = browser.tab(url)
        tab.wait("document.getElementById('status').textContent.startsWith('Choose')")
        tab.choose_file("#file", photos / "blob" / "1.jpg")
        done = "document.getElementById('status').textContent.startsWith('Reconstructed')"
        tab.wait(done)
        assert tab.text("#counts").startswith("12 of 16 patches are hidden (75 %)")
        before = tab.value("document.getElementById('made').toDataURL()")
        was_hidden = tab.value(center_is_gray())
        tab.click("#mask", 0.6, 0.6)
        count = 11 if was_hidden else 13
        tab.wait(f"document.getElementById('counts').textContent.startsWith('{count} of')")
        tab.wait(f"document.getElementById('made').toDataURL() !== '{before}'")
        tab.key("ArrowRight", 39)
        tab.key(" ", 32)
        assert tab.text("#place").startswith("row 3, column 4:")
        components = tab.value("document.getElementById('tokens').toDataURL()")
        tab.click("#tokens", 0.6, 0.1)
        note = "document.getElementById('tokens-note').textContent"
        assert tab.value(note).startswith("Cosine of each token to that of row 1, column 3:")
        like = tab.value("document.getElementById('tokens').toDataURL()")
        tab.key("ArrowDown", 40)
        assert "of row 2, column 3:" in tab.text("#place")
        assert tab.value("document.getElementById('tokens').toDataURL()") not in (like, components)
        tab.key("Escape", 27)
        assert tab.value("document.getElementById('tokens').toDataURL()") == components
        tab.click("[value=true]")
        tab.wait("document.getElementById('made-note').textContent.startsWith('LEAKS')")
        assert "too small because of the leak" in tab.text("#error-note")
        tab.click("#another")
        tab.wait("document.getElementById('counts').textContent.startsWith('12 of')")
        assert tab.value("document.getElementById('seed').value") == "1"
        for width in (1200, 360):
            tab.resize(width, 800, dark=width < 500)
            assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.complaints() == []
        (tmp_path / "no.png").write_bytes(bomb())
        tab.choose_file("#file", tmp_path / "no.png")
        tab.wait("document.getElementById('error').textContent.includes('megapixels')")
        tab.choose_file("#file", photos / "down" / "1.jpg")
        tab.wait(done)
        assert tab.text("#error") == ""
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


DONE = "document.getElementById('status').textContent.startsWith('Reconstructed')"
READING = "document.getElementById('status').textContent.startsWith('Reading')"


@needs_chromium
def test_dropped_and_pasted_images_a_closed_tab_and_two_browsers(
    page: Server, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Browser() as browser, Browser() as other:
        tab, theirs = browser.tab(page.url), other.tab(page.url)
        for one in (tab, theirs):
            one.wait("document.getElementById('status').textContent.startsWith('Choose')")
        note = "document.getElementById('original-note').textContent"
        tab.drop_file("#drop", photos / "blob" / "1.jpg")
        tab.wait(DONE)
        assert tab.value(note).startswith("48 x 40 pixels")
        assert not tab.value("document.getElementById('drop').classList.contains('over')")
        before = tab.value("document.getElementById('original').toDataURL()")
        with page.answers.lock:  # the server computes, and takes its time
            theirs.drop_file("body", photos / "down" / "1.jpg")  # anywhere on the page
            theirs.wait(READING)
            closed = browser.tab(page.url)
            closed.wait("document.getElementById('status').textContent.startsWith('Choose')")
            closed.drop_file("#drop", photos / "across" / "1.jpg")
            closed.wait(READING)
            closed.close()
        theirs.wait(DONE)
        own = "document.getElementById('original').toDataURL()"
        assert tab.value(own) == before != theirs.value(own)  # nothing of one is in the other
        tab.paste_picture()
        tab.wait(f"{note}.startsWith('30 x 20 pixels')")
        tab.wait(DONE)
        red = "document.getElementById('original').getContext('2d').getImageData(9, 9, 1, 1).data"
        assert tab.value(f"Array.from({red})") == [200, 0, 0, 255]
        assert tab.complaints() == theirs.complaints() == []
        (tmp_path / "note.txt").write_text("no image")
        tab.drop_file("#drop", tmp_path / "note.txt")
        tab.wait("document.getElementById('error').textContent.includes('not an image')")
        tab.drop_file("#drop", photos / "blob" / "1.jpg")
        tab.wait(f"{own} === '{before}'")
        assert tab.text("#error") == ""
    assert "Traceback" not in capfd.readouterr().err


def center_is_gray() -> str:
    """Whether the patch at 0.6, 0.6 of the mask is hidden."""
    return (
        "(() => { const c = document.getElementById('mask'); const p = c.getContext('2d')"
        ".getImageData(0.6 * c.width, 0.6 * c.height, 1, 1).data;"
        " return p[0] === 128 && p[1] === 128 && p[2] === 128; })()"
    )
