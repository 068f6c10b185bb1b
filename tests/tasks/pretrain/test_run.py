"""`mae pretrain` on folders as people have them: strange files, unreadable files, nested, and
nothing of it is changed."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.mae import PLAIN_TARGETS, VALUE_TARGETS
from helpers.runs_on_disk import flags
from helpers.small import SMALL, make_photos
from PIL import Image
from safetensors.torch import load_file

import torchmae
from torchmae import cli
from torchmae.data.augment import ColorJitter
from torchmae.data.transforms import CenterCropResize, FixedCropFlip, RandomResizedCropFlip
from torchmae.errors import UserError
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.masking import MASKINGS, MaskGenerator
from torchmae.models.vit import ViT
from torchmae.models.weights import load_mae
from torchmae.runfolder import read_config, stored_settings, write_config
from torchmae.settings.options import build
from torchmae.tasks.pretrain.config import Pretrain, ResolvedPretrain
from torchmae.tasks.pretrain.run import augmentation

FLAGS = [
    *(
        "--model",
        "vit_micro",
        "--image-size",
        "32",
        "--patch-size",
        "8",
        "--decoder-dim",
        "32",
        "--decoder-depth",
        "1",
    ),
    *("--epochs", "1", "--workers", "1"),
]


def mae(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user would run it."""
    return subprocess.run(
        [sys.executable, "-m", "torchmae", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: links as links, files by their hash and time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[str(path)] = (
                f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
            )
    return found


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kB whose 1-bit pixels would be width * height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compressobj(9)
    line = bytes(1 + width // 8)
    body = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def make_strange(folder: Path) -> None:
    """What people's folders hold: good images of every kind, and everything that only looks like
    one."""
    picture = Image.fromarray(
        np.random.default_rng(1).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    )
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(0, 65_536, 16, dtype=np.uint16).reshape(64, 64)).save(
        folder / "deep.png"
    )
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "turned.JPG", exif=turned)
    picture.save(folder / "żółw 龟.jpeg")
    picture.convert("RGBA").save(folder / "clear.webp")
    (folder / "nested" / "deeper").mkdir(parents=True)
    picture.convert("1").save(folder / "nested" / "deeper" / "bits.TIFF")
    whole = (folder / "turned.JPG").read_bytes()
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "text.jpg").write_text("this is no image")
    (folder / "bomb.png").write_bytes(bomb(20_000, 20_000))
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nested" / "up").symlink_to("..")
    (folder / "notes.txt").write_text("not looked at")


def test_a_strange_folder_trains_reports_each_file_rightly_and_stays_as_it_was(
    photos: Path, tmp_path: Path
) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for i, file in enumerate(sorted(photos.rglob("*.jpg"))):
        (data / f"{i}.jpg").write_bytes(file.read_bytes())
    make_strange(data)
    before = contents(data)
    done = mae("pretrain", data, "--out", tmp_path / "run", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert contents(data) == before
    assert "36 images" in done.stdout  # 24 photos, 7 strange and good, 5 bad; not the links
    bad = [
        json.loads(line) for line in (tmp_path / "run" / "bad-files.jsonl").read_text().splitlines()
    ]
    reasons = {entry["file"]: entry["reason"] for entry in bad}
    assert len(bad) == len(reasons) == 8
    for name, word in {
        "zero.jpg": "empty",
        "cut.jpg": "runcated",
        "text.jpg": "not an image",
        "deep.png": "uint16",
        "bomb.png": "400.0 megapixels, more than the limit of 100",
        "dangling.jpg": "broken symlink: No such file",
        "loop.jpg": "broken symlink: Too many levels",
        "nested/up": "already counted",
    }.items():
        assert word in reasons[name], (name, reasons[name])
    for made in ("config.json", "model.safetensors", "log.jsonl", "curves.png", "pictures"):
        assert (tmp_path / "run" / made).exists()
    assert "mae reconstruct" in done.stdout and "mae embed" in done.stdout


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("target", PLAIN_TARGETS)
def test_every_masking_and_target_trains(
    photos: Path, tmp_path: Path, masking: str, target: str
) -> None:
    run = torchmae.pretrain(
        str(photos), out=str(tmp_path), masking=masking, target=target, epochs=1, **SMALL
    )
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(records[-1]["loss"]) and records[-1]["step"] == 3


@pytest.mark.parametrize("target", VALUE_TARGETS)
def test_denoising(photos: Path, tmp_path: Path, target: str, capsys, written: list[str]) -> None:
    """A run, its baselines, its pictures; resumed it ends with the same bits."""
    words = f"--noise 0.5 --mask-ratio 0 --loss-on all --target {target} --epochs 3 --log-every 4"
    command = ["pretrain", str(photos), *flags(SMALL), *words.split(), "--save-minutes", "1e-6"]
    run = tmp_path / "run"
    assert cli.main([*command, "--out", str(run)]) == 0
    assert "16 px" not in (out := capsys.readouterr().out) and "patches of 8 px, noise of" in out
    assert "noisy" in written and "prediction" not in written
    assert any("noise of std 0.5" in text and "hidden" not in text for text in written)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(r["loss"]) and r["loss of noisy input"] > 0 for r in records)
    whole = (run / "model.safetensors").read_bytes()
    shutil.rmtree(max((run / "state").iterdir()))
    (run / "model.safetensors").unlink()
    assert cli.main([*command, "--out", str(run), "--micro-batch-size", "8"]) == 0
    assert (run / "model.safetensors").read_bytes() == whole
    picture = tmp_path / "x.png"
    assert (
        cli.main(["reconstruct", str(run), str(photos / "blob/0.jpg"), "--out", f"{picture}"]) == 0
    )
    assert picture.is_file()
    capsys.readouterr()
    export = ["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "exported")]
    assert cli.main(export) == 2
    assert "add --only encoder" in capsys.readouterr().err
    assert cli.main([*export, "--only", "encoder"]) == 0


@pytest.mark.parametrize("words", ["--noise 0.5", "--loss-on all", "--loss-on all --noise 0"])
def test_a_ratio_of_zero_needs_noise_and_all_patches(photos: Path, words: str, capsys) -> None:
    assert cli.main(["pretrain", str(photos), "--mask-ratio", "0", *words.split()]) == 2
    error = capsys.readouterr().err
    assert "add --noise 0.5 --loss-on all" in error and error.count("\n") == 1


def test_checkpointed_blocks_give_the_same_weights_and_may_change_when_a_run_goes_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, on in (("plain", False), ("less", True)):
        out = torchmae.pretrain(
            str(photos), out=tmp_path / name, grad_checkpointing=on, epochs=2, **SMALL
        )
        assert (", gradient checkpointing\n" in capsys.readouterr().out) == on
        assert read_config(out)["config"]["grad_checkpointing"] == on
    assert (tmp_path / "less/model.safetensors").read_bytes() == (
        tmp_path / "plain/model.safetensors"
    ).read_bytes()
    asked = dict(out=tmp_path / "less", epochs=2, **SMALL)
    assert torchmae.pretrain(str(photos), grad_checkpointing=False, **asked) == tmp_path / "less"
    assert "is finished" in capsys.readouterr().out


def test_mask_tokens_in_the_encoder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--out", tmp_path / "run", "--encode-all", "--grad-checkpointing", "--epochs", 2]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert cli.main(["pretrain", str(photos), *map(str, words), *flags]) == 0
    said = capsys.readouterr().out
    assert ", mask tokens in the encoder;" in said and ", gradient checkpointing\n" in said
    assert "Peak memory: " in said
    stored, model = read_config(tmp_path / "run"), load_mae(tmp_path / "run")
    assert stored["config"]["encode_all"] is True and stored["model"]["encode_all"] is True
    assert model.mask_token is not None and model.decoder.mask_token is None
    again = build(Pretrain, stored_settings(tmp_path / "run"))
    assert again.masking.encode_all and again.runtime.grad_checkpointing
    with pytest.raises(UserError, match="encode_all was True, is False"):
        torchmae.pretrain(str(photos), out=tmp_path / "run", epochs=2, **SMALL)


def test_the_library_and_the_command_make_the_same_run(photos: Path, tmp_path: Path) -> None:
    settings = ["--batch-size", 8, "--workers", 0, "--device", "cpu", "--image-size", "16x32"]
    done = mae("pretrain", photos, "--out", tmp_path / "a", *FLAGS, *settings)
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {**SMALL, "image_size": "16x32", "epochs": 1}
    torchmae.pretrain(str(photos), out=str(tmp_path / "b"), **options)
    torch.set_num_threads(threads)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_load_gives_an_encoder_with_positions_and_the_data_s_normalisation(
    run: Path, photos: Path
) -> None:
    encoder = torchmae.load(run)
    assert isinstance(encoder, ViT) and not encoder.training
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert encoder(encoder.normalize(images)).shape == (2, 1 + 16, 128)
    assert encoder.pos_embed[:, 1:].abs().sum() > 0
    pixels = (
        np.concatenate(
            [np.asarray(Image.open(file)).reshape(-1, 3) for file in sorted(photos.rglob("*.jpg"))]
        )
        / 255
    )
    np.testing.assert_allclose(encoder.mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(encoder.std, pixels.std(0), atol=1e-4)


def test_the_encoder_is_trained_as_if_there_were_no_statistics_head(
    photos: Path, tmp_path: Path
) -> None:
    """The head learns from detached features: one run with it, one without, and the encoders are
    the same bit for bit."""
    from torchmae.data.loader import Batch
    from torchmae.tasks.pretrain.task import PretrainTask
    from torchmae.train.config import TrainConfig
    from torchmae.train.distributed import World
    from torchmae.train.trainer import Trainer

    def train(with_head: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = MAE(ViT((16, 16), 4, 1, 32, 2, 2), DecoderConfig("transformer", 16, 1, 2))
        if not with_head:
            model.decoder.statistics = None
        task = PretrainTask(model, MaskGenerator(), 0)
        plan = TrainConfig(5, 0, 1e-3, 0.05, (0.9, 0.95), 0.1, "fp32")
        step = Trainer(task, World(0, 1, torch.device("cpu")), plan)
        generator = torch.Generator().manual_seed(1)
        for i in range(5):
            images = torch.randint(0, 256, (4, 1, 16, 16), generator=generator, dtype=torch.uint8)
            step(
                Batch(images, None, torch.zeros(4, dtype=torch.int64), torch.arange(4) + 4 * i),
                1e-3,
            )
        return {
            name: value for name, value in model.state_dict().items() if "statistics" not in name
        }

    with_head, without = train(True), train(False)
    assert all(torch.equal(with_head[name], without[name]) for name in without)


def test_trivial_predictors_by_brute_force(photos: Path) -> None:
    from torchmae.data.loader import Batch
    from torchmae.tasks.pretrain.task import PretrainTask

    model = MAE(
        ViT((16, 16), 4, 1, 32, 2, 2, mean=(0.4,), std=(0.3,)),
        DecoderConfig("transformer", 16, 1, 2),
        target="pixels",
    )
    task = PretrainTask(model, MaskGenerator(), 0)
    images = torch.randint(
        0, 256, (3, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    batch = Batch(images, None, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    mask, floats = task.mask(batch), (images.double() / 255 - 0.4) / 0.3
    patch_mean, visible_mean = [], []
    for image, keep, hide in zip(floats[:, 0], mask.keep.tolist(), mask.hide.tolist()):
        cut = [
            image[4 * (i // 4) : 4 * (i // 4) + 4, 4 * (i % 4) : 4 * (i % 4) + 4] for i in range(16)
        ]
        visible = sum(cut[i] for i in keep) / len(keep)
        patch_mean += [float(((cut[i] - cut[i].mean()) ** 2).mean()) for i in hide]
        visible_mean += [float(((cut[i] - visible) ** 2).mean()) for i in hide]
    found = task.diagnose(batch)
    assert float(found["loss of patch mean"]) == pytest.approx(np.mean(patch_mean), rel=1e-5)
    assert float(found["loss of visible mean"]) == pytest.approx(np.mean(visible_mean), rel=1e-5)


def test_a_tracker_and_imagenet_normalisation(photos: Path, tmp_path: Path) -> None:
    run = torchmae.pretrain(
        str(photos),
        out=str(tmp_path),
        tracker="tensorboard",
        normalize="imagenet",
        epochs=1,
        **SMALL,
    )
    assert torchmae.load(run).mean == (0.485, 0.456, 0.406)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    assert "loss" in events.Tags()["scalars"]


def test_a_wrong_setting_leaves_the_run_folder_free(photos: Path, tmp_path: Path) -> None:
    """Regression: config.json was written first, and the corrected command was then refused as
    another run."""
    out = str(tmp_path / "run")
    with pytest.raises(UserError, match=r"mask ratio 0.999 leaves 0 of 16 patches"):
        torchmae.pretrain(photos, out=out, mask_ratio=0.999, epochs=1, **SMALL)
    assert not Path(out).exists()  # nor is it there for nothing
    run = torchmae.pretrain(photos, out=Path(out), crop_scale=[0.5, 1.0], epochs=1, **SMALL)
    assert torchmae.pretrain(photos, out=out, crop_scale=[0.5, 1.0], epochs=1, **SMALL) == run


def test_no_run_folder_inside_the_data(photos: Path) -> None:
    """Regression: the pictures of a run became images of the next."""
    before = contents(photos)
    with pytest.raises(UserError, match=r"lies inside the data .* such as --out \.\./runs/photos"):
        torchmae.pretrain(photos, out=str(photos / "runs" / "x"), epochs=1, **SMALL)
    assert contents(photos) == before


def test_weights_without_their_checkpoints_are_not_overwritten(
    photos: Path, tmp_path: Path
) -> None:
    """Regression: with state/ gone the same command trained again from step 0."""
    import shutil

    run = torchmae.pretrain(photos, out=str(tmp_path / "run"), epochs=1, **SMALL)
    weights = (run / "model.safetensors").read_bytes()
    shutil.rmtree(run / "state")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        torchmae.pretrain(photos, out=str(run), epochs=1, **SMALL)
    assert (run / "model.safetensors").read_bytes() == weights


def test_torn_lines_and_leftovers_do_not_stop_a_resume(photos: Path, tmp_path: Path) -> None:
    """Regression: what a kill leaves behind (half a line, a partial file) made every later start
    fail."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.json.partial").write_text("{")
    run = torchmae.pretrain(photos, out=str(out), epochs=1, **SMALL)
    with (run / "bad-files.jsonl").open("a") as file:
        file.write('{"file": "x.jpg", "rea')
    from torchmae.runfolder import note_bad_files

    assert note_bad_files(run.path, [("y.jpg", "empty file")]) == ["y.jpg"]
    assert torchmae.pretrain(photos, out=str(out), epochs=1, **SMALL) == run


def test_tiny_grey_images_train_by_default(tmp_path: Path) -> None:
    """Regression: patches of one value, whose deviation is not a number."""
    np.save(
        tmp_path / "d8.npy", np.random.default_rng(0).integers(0, 255, (24, 8, 8), dtype=np.uint8)
    )
    run = torchmae.pretrain(
        tmp_path / "d8.npy", out=str(tmp_path / "run"), epochs=1, workers=0, device="cpu"
    )
    assert torchmae.load(run).patch_size == 2
    with pytest.raises(UserError, match="patches of one value"):
        torchmae.pretrain(
            tmp_path / "d8.npy", out=str(tmp_path / "other"), patch_size=1, epochs=1, device="cpu"
        )


@pytest.mark.parametrize("cache", [None, "memory", "disk", "device"])
def test_a_cache_does_not_change_the_weights(tmp_path, cache, capsys):
    photos = make_photos(tmp_path / "photos")
    (photos / "zz.jpg").write_bytes(b"no image")
    runs = [
        torchmae.pretrain(str(photos), out=str(tmp_path / str(kind)), epochs=3, cache=kind, **SMALL)
        for kind in ("none", cache)
    ]
    plain, made = (load_file(run / "model.safetensors") for run in runs)
    assert plain.keys() == made.keys() and all(
        torch.equal(plain[name], made[name]) for name in plain
    )
    said = capsys.readouterr().out
    assert (
        "decoded each time" in said
        and {
            None: "decoding takes",
            "memory": "kept in memory",
            "disk": "in a file",
            "device": "on the dev",
        }[cache]
        in said
    )
    assert ("decoding takes" in said) == (cache is None)  # what is chosen has a reason
    torchmae.pretrain(
        str(photos), out=str(tmp_path / str(cache)), epochs=3, cache="none", **SMALL
    )  # may change at any time
    assert "is finished" in capsys.readouterr().out


def test_a_resume_keeps_what_was_chosen_for_compile(tmp_path, capsys):
    """A short training is not compiled; one that was is so again, unless told otherwise."""
    photos = str(make_photos(tmp_path / "photos"))
    asked = dict(out=str(tmp_path / "run"), epochs=1, **SMALL)
    run = torchmae.pretrain(photos, **asked)
    assert "compile  off        the training is short" in capsys.readouterr().out
    stored = read_config(run)
    assert stored["config"]["compile"] is False
    write_config(
        run.path,
        "pretrain",
        stored["config"] | {"compile": True},  # as where a long one is measured
        stored["data"],
        stored["model"],
    )
    for more, said in (({}, ", compiled"), ({"compile": False}, ", not compiled")):
        torchmae.pretrain(photos, **asked, **more)
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, kind",
    [
        ({"crop": "fixed"}, FixedCropFlip((32, 32), 0)),
        ({"crop": "none"}, CenterCropResize((32, 32))),
        ({"color_jitter": 0.4}, ColorJitter(RandomResizedCropFlip((32, 32), 0), 0.4, 0)),
        ({"crop": "none", "color_jitter": 0.5}, ColorJitter(CenterCropResize((32, 32)), 0.5, 0)),
    ],
)
def test_augmentations_of_table_1e_train_and_resume(tmp_path, flags, kind):
    photos = make_photos(tmp_path / "photos")
    asked = dict(out=str(tmp_path / "run"), epochs=1, **flags, **SMALL)
    run = torchmae.pretrain(str(photos), **asked)
    stored = stored_settings(run)
    assert augmentation(build(ResolvedPretrain, stored)) == kind
    assert torchmae.pretrain(str(photos), **asked) == run  # finished: nothing differs
    other = {"crop": "random", "color_jitter": 0.0}
    with pytest.raises(UserError, match="is another run: (crop|color_jitter) was"):
        torchmae.pretrain(str(photos), **{**asked, **other})


def test_a_cache_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--cache 'ram'"):
        torchmae.pretrain("digits", out=str(tmp_path / "run"), cache="ram", **SMALL)
