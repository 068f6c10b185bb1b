"""`mae tokenizer` on real files, and `mae pretrain --target tokens:RUN` with what it made."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.runs_on_disk import ENV, flags, steps_saved, weights
from helpers.small import QUICK, SMALL
from PIL import Image

import torchmae
from torchmae import cli
from torchmae.data.loader import Batch
from torchmae.errors import UserError
from torchmae.models.targets.tokenizer import gumbel, kl_to_uniform
from torchmae.models.weights import load_tokenizer
from torchmae.runfolder import read_any_config, read_log, read_results
from torchmae.tasks.tokenizer.task import TokenizerTask

OPTIONS = dict(
    image_size=16,
    patch_size=8,
    vocabulary=32,
    batch_size=8,
    workers=0,
    device="cpu",
    precision="fp32",
    epochs=4,
    log_every=3,
)


@pytest.fixture(scope="module")
def tokenizer(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "run"
    return Path(torchmae.tokenizer(photos, out=out, **OPTIONS))


def test_what_a_run_holds(tokenizer: Path) -> None:
    described = read_any_config(tokenizer)
    assert described["verb"] == "tokenizer"
    assert described["model"]["tokenizer"]["vocabulary"] == 32
    found = read_results(tokenizer, "tokenizer")[-1]["results"]
    assert found["images"] == 24 and found["vocabulary"] == 32
    assert 1 <= found["perplexity"] <= 32 and 0 <= found["dead"] < 32 and 0 < found["error"] < 2
    records = read_log(tokenizer)
    losses = [record for record in records if "loss" in record]
    for name in ("reconstruction error", "kl", "batch perplexity"):
        assert all(record[name] > 0 for record in losses)
    assert losses[-1]["temperature"] == pytest.approx(1 / 16)
    assert {"codes used", "perplexity"} <= {name for record in records for name in record}
    (picture,) = (tokenizer / "pictures").iterdir()
    with Image.open(picture) as image:
        assert image.width > 600
    assert (tokenizer / "curves.png").is_file()
    assert torchmae.verify(tokenizer)


def test_a_reloaded_tokenizer_has_the_tokens_that_were_measured(
    tokenizer: Path, photos: Path
) -> None:
    from torchmae.data.loader import read_pixels
    from torchmae.data.sources import open_source
    from torchmae.data.transforms import CenterCropResize

    source, crop = open_source(str(photos)), CenterCropResize((16, 16))
    images = torch.stack([crop(read_pixels(source, i))[0] for i in range(len(source))])
    one, other = load_tokenizer(tokenizer), torchmae.load_tokenizer(tokenizer)
    tokens = one.tokens(one.normalize(images))
    assert torch.equal(tokens, other.tokens(other.normalize(images)))
    assert tokens.dtype == torch.int64 and tokens.min() >= 0 and tokens.max() < 32
    dead = 32 - len(tokens.unique())
    assert read_results(tokenizer, "tokenizer")[-1]["results"]["dead"] == dead


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tokenizer: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Stopped by a signal at its first checkpoint, gone on with by another number of workers."""
    run = tmp_path / "run"
    options = OPTIONS | {"out": run, "save_minutes": 1e-6}
    command = [sys.executable, "-m", "torchmae", "tokenizer", str(photos)]
    first = subprocess.Popen([*command, *flags(options)], env=ENV, stdout=subprocess.DEVNULL)
    while first.poll() is None and not list(run.glob("state/step-*")):
        time.sleep(0.002)
    first.terminate()
    assert first.wait(60) == 143
    assert steps_saved(run) < 12
    assert not (run / "curves.png").exists()
    again = subprocess.run(
        [*command, *flags(options | {"workers": 1})], env=ENV, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stdout
    assert weights(run) == weights(tokenizer)
    capsys.readouterr()
    torchmae.tokenizer(photos, **{**options, "save_minutes": 5.0})
    finished = capsys.readouterr().out
    assert "is finished" in finished and "perplexity" in finished
    assert weights(run) == weights(tokenizer)


def make_task(tokenizer: Path) -> tuple[TokenizerTask, Batch]:
    task = TokenizerTask(load_tokenizer(tokenizer), steps=101, kl_weight=0.5, seed=3).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return task, Batch(images, None, torch.zeros(6).long(), torch.arange(6), step=50)


def test_the_loss_by_hand(tokenizer: Path) -> None:
    task, batch = make_task(tokenizer)
    temperature = (1 + 1 / 16) / 2  # half way of the cosine
    assert task.temperature(50) == pytest.approx(temperature)
    assert task.temperature(0) == 1 and task.temperature(100) == pytest.approx(1 / 16)
    assert task.kl_weight_at(0) == 0 and task.kl_weight_at(50) == 0.5
    assert 0 < task.kl_weight_at(5) < 0.5
    model = task.model
    images = model.normalize(batch.images)
    made = model(images, gumbel(3, batch.epoch, batch.sample, 4, 32), temperature)
    error = (made.reconstruction - images).square().mean()
    kl = kl_to_uniform(made.logits).sum(1).mean() / (16 * 16 * 3)  # nats a value
    torch.testing.assert_close(task(batch)["loss"], error + 0.5 * kl)


def test_micro_batches_have_the_gradient_of_the_batch(tokenizer: Path) -> None:
    task, batch = make_task(tokenizer)
    task(batch)["loss"].backward()
    whole = [p.grad.clone() for p in task.parameters()]
    task.zero_grad()
    for part in batch.chunks(3):
        (task(part)["loss"] / 3).backward()
    for one, p in zip(whole, task.parameters()):
        torch.testing.assert_close(p.grad, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "line, words",
    [
        ("--vocabulary 4", "--vocabulary 4: must be at least 16"),
        ("--patch-size 6", "--patch-size 6 is no power of two.*use 4 or 8"),
        ("--patch-size 1", "--patch-size 1 is no power of two.*use 2 or 4"),
        ("--image-size 20 --patch-size 8", "20 is not divisible by patch size 8"),
        ("--image-size 21", "--image-size 21 has no patch size that is a power of two"),
    ],
)
def test_mistakes_are_one_line(photos, tmp_path, capsys, line, words):
    assert cli.main(["tokenizer", str(photos), *line.split(), "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1
    assert not (tmp_path / "x" / "config.json").exists()


@pytest.mark.parametrize(
    "line",
    [
        "knn RUN PHOTOS",
        "probe RUN PHOTOS --fast",
        "embed RUN PHOTOS --out f.npz",
        "evaluate RUN PHOTOS",
        "predict RUN PHOTOS --out f.csv",
        "reconstruct RUN PHOTOS/blob/0.jpg",
        "export RUN --to safetensors --out exported",
        "finetune RUN PHOTOS",
        "partial RUN PHOTOS",
        "compare RUN PHOTOS",
    ],
)
def test_other_verbs_say_what_it_is(tokenizer, photos, tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    line = line.replace("PHOTOS", str(photos)).replace("RUN", str(tokenizer))
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert "holds a tokenizer, no encoder" in error and error.count("\n") == 1
    assert "--target tokens:" in error
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the target


@pytest.fixture(scope="module")
def pretrained(tokenizer: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made with a tokenizer that is gone afterwards."""
    folder = tmp_path_factory.mktemp("tokens")
    shutil.copytree(tokenizer, folder / "tokenizer")
    options = SMALL | dict(epochs=2, save_minutes=1e-6, log_every=2)
    run = torchmae.pretrain(
        photos, target=f"tokens:{folder}/tokenizer", out=folder / "run", **options
    )
    shutil.rmtree(folder / "tokenizer")
    return run.path


def test_a_run_with_tokens(pretrained: Path, tokenizer: Path, photos: Path, capsys) -> None:
    records = [record for record in read_log(pretrained) if "loss" in record]
    for record in records:
        assert 0 < record["loss of token frequencies"] <= record["loss of uniform tokens"]
        assert "loss of patch mean" not in record
    assert not (pretrained / "pictures").exists()
    mae = torchmae.load_mae(pretrained)
    theirs = load_tokenizer(tokenizer).state_dict()
    kept = mae.target.network.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in theirs.items())
    assert mae.target.width == 32
    torchmae.knn(pretrained, photos, device="cpu", k=3)
    assert cli.main(["reconstruct", str(pretrained), str(photos / "blob/0.jpg")]) == 2
    assert "predicts tokens, not pixels: there is nothing to draw" in capsys.readouterr().err


def test_decoding_that_is_left_open_is_as_it_was(photos: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "epochs": 0.5}
    run = torchmae.tokenizer(photos, out=tmp_path / "run", **options, max_megapixels=50)
    config = read_any_config(run)["config"]
    assert (config["max_megapixels"], config["dtype"]) == (50, "uint8")
    torchmae.tokenizer(photos, out=run, **options)
    torchmae.tokenizer(photos, out=run, **options, dtype="uint8")
    with pytest.raises(UserError, match="max_megapixels was 50, is 100"):
        torchmae.tokenizer(photos, out=run, **options, max_megapixels=100)


def test_it_resumes_without_the_tokenizer(pretrained: Path, photos: Path, tmp_path: Path) -> None:
    run = shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(run / "state/step-00000006")
    settings = read_any_config(run)["config"]
    again = torchmae.pretrain(photos, target=settings["target"], out=run, **SMALL)
    assert weights(again) == weights(pretrained)


def test_starting_from_it(pretrained: Path, tokenizer: Path, photos: Path, tmp_path: Path, capsys):
    """Its own tokens keep their layer, pixels and another tokenizer get a new one."""
    other = torchmae.tokenizer(
        photos, out=tmp_path / "other", **{**OPTIONS, "seed": 1, "epochs": 1}
    )
    lines = {
        f"tokens:{tokenizer}": None,
        f"tokens:{other}": "was tokens (a new layer)",
        "norm-pixels": "target norm-pixels, was tokens (a new layer)",
    }
    small = {n: v for n, v in SMALL.items() if n in ("batch_size", "workers", "device")}
    for i, (target, words) in enumerate(lines.items()):
        capsys.readouterr()
        run = torchmae.pretrain(
            photos,
            target=target,
            from_run=str(pretrained),
            out=tmp_path / f"{i}",
            epochs=1,
            **small,
        )
        out = capsys.readouterr().out
        assert ("a new layer" in out) == (words is not None) and (words or "") in out
        if target.startswith("tokens"):
            wanted = load_tokenizer(target.removeprefix("tokens:")).state_dict()
            mine = torchmae.load_mae(run).target.network.state_dict()
            assert all(torch.equal(mine[name], value) for name, value in wanted.items())
    torchmae.finetune(pretrained, photos, out=tmp_path / "classifier", **QUICK)


def test_export(pretrained: Path, tmp_path: Path, capsys) -> None:
    words = ["export", str(pretrained), "--out", str(tmp_path / "out"), "--to", "safetensors"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "predictions of tokens mean nothing" in error and "--only encoder" in error
    assert error.count("\n") == 1
    assert cli.main([*words, "--only", "encoder"]) == 0


@pytest.mark.parametrize(
    "line, words",
    [
        ("--target tokens", "needs a run of mae tokenizer"),
        ("--target tokens:none", "none is not a run folder"),
        (
            "--target tokens:PRETRAINED",
            "holds an encoder and a decoder: name a run of mae tokenizer",
        ),
        ("--target tokens:TOKENIZER --patch-size 16", "patches of 8 px, the model 16"),
        ("--target tokens:TOKENIZER --channels 1", "takes 3 channels, the model 1"),
    ],
)
def test_a_tokenizer_that_does_not_fit(
    tokenizer: Path, pretrained: Path, photos: Path, line: str, words: str, capsys
) -> None:
    out = pretrained.parent / "refused"
    line = line.replace("PRETRAINED", str(pretrained)).replace("TOKENIZER", str(tokenizer))
    options = flags(SMALL | {"out": out, "epochs": 1})
    assert cli.main(["pretrain", str(photos), *options, *line.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (out / "config.json").exists()


def test_two_processes_train_what_one_does(tokenizer: Path, photos: Path, tmp_path: Path) -> None:
    options = flags(OPTIONS | {"out": tmp_path / "two", "epochs": 1})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "torchmae", "tokenizer", str(photos), *options]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torchmae.tokenizer(photos, out=tmp_path / "one", **{**OPTIONS, "epochs": 1})
    one, two = (load_tokenizer(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    losses = [
        [record["loss"] for record in read_log(tmp_path / name) if "loss" in record]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert json.loads((tmp_path / "two" / "results.json").read_text())["results"]
