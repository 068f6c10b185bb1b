"""`mae bench`: what is counted and written, not how fast this machine is."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from torchmae import cli
from torchmae.benchmarks import peers as bench_peers
from torchmae.benchmarks import run as bench
from torchmae.benchmarks import timing as bench_timing
from torchmae.benchmarks.config import Bench
from torchmae.benchmarks.peers import PEERS
from torchmae.errors import UserError
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.sizes import SIZES
from torchmae.models.vit import ViT

CPU = torch.device("cpu")
TINY = dict(
    model="vit_micro",
    image_size=32,
    patch_size=8,
    batch_size=2,
    rounds=1,
    precision="fp32",
    device="cpu",
)


def needs(name: str) -> None:
    if any(find_spec(package) is None for package in PEERS[name].packages):
        pytest.skip(f"{name} is not installed: pip install torchmae[bench]")


# ---------------------------------------------------------------- peers


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_the_same_architecture_and_trains(name: str) -> None:
    needs(name)
    torch.manual_seed(0)
    model = MAE(ViT((32, 32), 8, 3, **SIZES["vit_micro"]), DecoderConfig("transformer", 128, 3, 2))
    peer = PEERS[name].build(model.config(), 0.75).train()
    size = sum(p.numel() for n, p in model.named_parameters() if "statistics" not in n)
    found = sum(p.numel() for p in peer.parameters())
    if (
        name == "vit-pytorch"
    ):  # without class token and qkv biases, with more norms and learned positions
        assert found == pytest.approx(size, rel=0.02)
    else:
        extra = 128 if name == "lightly" else 0  # its encoder keeps a mask token that nothing uses
        assert found == size + extra
    images = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.AdamW(peer.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = peer(images)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(
        p.grad is not None
        for n, p in peer.named_parameters()
        if p.requires_grad and "mask_token" not in n
    ) or (name == "vit-pytorch")


def test_a_peer_s_attention_is_the_fused_one() -> None:
    model = MAE(ViT((32, 32), 8, 3, **SIZES["vit_micro"]))
    assert (
        PEERS["transformers"].build(model.config(), 0.75).model.config._attn_implementation
        == "sdpa"
    )


def test_which_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        list(bench_peers.find_peers("transformers"))
        == list(bench_peers.find_peers(" transformers ,timm"))
        == ["transformers"]
    )
    assert bench_peers.find_peers("none") == {}
    with pytest.raises(UserError, match="unknown peer 'lightli'. Did you mean lightly"):
        bench_peers.find_peers("lightli")
    monkeypatch.setattr(bench_peers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match='"vit-pytorch": pip install "torchmae\\[bench\\]"'):
        bench_peers.find_peers("vit-pytorch")


# ---------------------------------------------------------------- measuring


def test_candidates_take_turns() -> None:
    calls: list[str] = []

    def candidate(name: str) -> bench_timing.Candidate:
        return bench_timing.Candidate(name, lambda: calls.append(name), 1.0)

    candidates = [candidate(name) for name in "abc"]
    seconds = bench_timing.benchmark_interleaved(candidates, 3, CPU)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert calls[:6] == list("aabbcc")  # to warm up
    measured = calls[6:]
    order = [name for i, name in enumerate(measured) if i == 0 or name != measured[i - 1]]
    assert order == list("abc" + "bca" + "cab")
    assert len(measured) <= 9 * 200


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which everything takes ten times as long says the same as the others."""
    assert bench_timing.speed_beside([2.0, 20.0, 2.0], [1.0, 10.0, 1.5]) == dict(
        median=0.5, least=0.5, most=0.75
    )


def test_peak_memory_is_that_of_the_tensors_of_a_step() -> None:
    model = nn.Linear(1000, 1000)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(500, 1000)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(images).sum().backward()
        optimizer.step()

    step()
    found = bench_timing.step_memory_mb(
        bench_timing.Candidate("x", step, 1.0, model, optimizer), CPU
    )
    weights = 4 * 1000 * 1001 / 1e6
    assert (
        found is not None and 4 * weights <= found < 4 * weights + 8
    )  # weights, moments, gradients; some activations
    assert bench_timing.step_memory_mb(bench_timing.Candidate("x", step, 1.0), CPU) is None


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with bench_timing.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------- the command


def test_a_step_beside_its_peers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    needs("vit-pytorch")
    out = tmp_path / "new" / "bench.json"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert (
        cli.main(
            ["bench", "step", *flags, "--vs", "timm,transformers,vit-pytorch", "--out", str(out)]
        )
        == 0
    )
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "skipped: timm has no Masked Autoencoder" in said and "timm" in result["skipped"][0]
    assert set(result) == {"command", "machine", "versions", "settings", "skipped", "models"}
    assert result["command"].startswith(
        "mae bench step --model vit_micro --batch-size 2 --image-size 32"
    )
    assert str(tmp_path) not in result["command"]
    assert set(result["machine"]) == {"device", "cores", "threads", "load", "system"}
    assert {"python", "torch", "torchmae", "transformers", "vit-pytorch"} <= set(result["versions"])
    found = result["models"]["vit_micro"]
    names = ["torchmae", "transformers", "vit-pytorch"]
    assert [row["name"] for row in found["rows"]] == [
        *names,
        *(f"{n}, decoder heads of 64" for n in names[::2]),
    ]
    for row in found["rows"]:
        assert row["name"] in said and row["images_per_s"] > 0 and row["share_of_product"] > 0
        assert len(row["seconds"]) == 1 and row["peak_memory_mb"] > 16
        assert (
            (row["against"] is None) == (row["speed"] is None) == row["name"].startswith("torchmae")
        )
        if row["speed"]:
            other = next(r for r in found["rows"] if r["name"] == row["against"])
            assert row["speed"]["median"] == pytest.approx(other["seconds"][0] / row["seconds"][0])
            assert row["against"] == (
                "torchmae" + row["name"].removeprefix("vit-pytorch")
                if "heads" in row["name"]
                else "torchmae"
            )
    assert (
        found["matrix_product"]["tflops"] > 0
        and f"{found['gflop_per_image']:.2f} GFLOP an image" in said
    )


def test_table_2_of_a_small_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = bench.run(Bench("wall-clock", **TINY, out=str(tmp_path / "bench.json")))
    rows = json.loads(out.read_text())["models"]["vit_micro"]["rows"]
    names = [
        f"mask tokens in the {place}, decoder depth {depth}"
        for place, depth in (("encoder", 8), ("decoder", 8), ("decoder", 1))
    ]
    assert [row["name"] for row in rows] == names
    assert rows[0]["fewer_operations"] == 1 and rows[0]["speed"]["median"] == 1
    assert 1 < rows[1]["fewer_operations"] < rows[2]["fewer_operations"]
    for row in rows:
        assert row["paper_speed"] is None and len(row["seconds"]) == 1


def test_table_2_of_the_paper_s_models_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = bench.run(
        Bench("wall-clock", measure=False, device="cpu", out=str(tmp_path / "bench.json"))
    )
    models = json.loads(out.read_text())["models"]
    assert [row["paper_speed"] for rows in models.values() for row in rows["rows"]] == [
        None,
        2.8,
        3.7,
        None,
        3.5,
        4.1,
    ]
    assert all(
        row["speed"] is row["seconds"] is None for rows in models.values() for row in rows["rows"]
    )
    said = capsys.readouterr().out
    assert said.count("not measured") == 6 and "3.23x" in said and "2.8x" in said


MISTAKES = {
    "frob": ["unknown WHAT 'frob'; one of: step, dense, wall-clock, data, resume, startup"],
    "step --model vit_bas": ["unknown model 'vit_bas'", "Did you mean vit_base"],
    "step --image-size 30": ["30x30 is not divisible by patch size 16"],
    "step --rounds 0": ["--rounds 0: must be more than 0"],
    "step --threads -1": ["--threads -1: must be more than 0"],
    "step --precision fp16": ["--precision fp16: fp32 or bf16"],
    "step --no-measure": ["--no-measure goes with mae bench wall-clock"],
    "wall-clock --vs lightly": ["--vs goes with mae bench step only: leave it out"],
    "step photos": ["DATA (photos) goes with mae bench data, startup only: leave it out"],
    "resume photos": ["DATA (photos) goes with mae bench data, startup"],
    "resume --image-size 32": [
        "--image-size goes with mae bench step, dense, wall-clock, data only"
    ],
    "startup --model vit_base": ["--model goes with mae bench step"],
    "step --step-images-per-s 9": ["--step-images-per-s goes with mae bench data only"],
    "data": ["DATA is missing: mae bench data FOLDER"],
    "data photos --step-images-per-s 0": ["--step-images-per-s 0: must be more than 0"],
    "data photos --step-images-per-s 9 --model vit_base": [
        "--model is there to measure what --step-images-per-s says"
    ],
    "step --vs timmm": ["unknown peer 'timmm'"],
    "step --out .": ["--out . is a folder"],
    "step --out file/bench.json": ["--out file/bench.json cannot be written"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_said_at_once(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", *line.split()]) == 2
    found = capsys.readouterr()
    assert found.out == "" and all(words in found.err for words in MISTAKES[line])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
