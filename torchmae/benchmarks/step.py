"""`mae bench step` and `mae bench wall-clock`: a training step beside other libraries; Table 2."""

import logging
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmae.benchmarks.config import Bench, models, patch_size
from torchmae.benchmarks.peers import WITHOUT, Peer, find_peers
from torchmae.benchmarks.timing import (
    Candidate,
    benchmark_interleaved,
    matrix_product,
    speed_beside,
    spread,
    step_memory_mb,
)
from torchmae.data.loader import Batch
from torchmae.models.decoders import decoder_config
from torchmae.models.mae import MAE, training_flops
from torchmae.models.masking import MaskGenerator
from torchmae.models.patches import normalize
from torchmae.models.sizes import size_of
from torchmae.models.vit import ViT
from torchmae.models.weights import seeded
from torchmae.tasks.pretrain.task import PretrainTask
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.optim import param_groups_weight_decay
from torchmae.train.trainer import Trainer

logger = logging.getLogger(__name__)

MASK_RATIO = 0.75
HEAD_WIDTH = 64  # of vit-pytorch's decoder by default; the paper's heads are 32 wide
LR = 1e-4
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.95)


# Table 2 of the paper: wall-clock time with mask tokens in the encoder and 8 decoder blocks, over
# that without and with so many decoder blocks (128 TPU-v3 cores, batch 4096).
PAPER = {("vit_large", 8): 2.8, ("vit_large", 1): 3.7, ("vit_huge", 8): 3.5, ("vit_huge", 1): 4.1}


def flops(model: MAE) -> int:
    """`training_flops` at the ratio of the bench, whose models are all counted."""
    count = training_flops(model, MaskGenerator(ratio=MASK_RATIO))
    assert count is not None
    return count


class Case(NamedTuple):
    """What all candidates for one model have in common."""

    config: Bench
    device: torch.device
    images: Tensor  # uint8, on the device

    def ours(self, name: str, model: MAE, against: str | None = None, note: str = "") -> Candidate:
        """The step of `mae pretrain`, with normalization, masks and statistics head."""
        trainer = self.trainer(model)
        batch = self.batch()
        work = flops(model) * len(self.images)
        made = (trainer.task.model, trainer.optimizer)
        return Candidate(name, lambda: trainer(batch, LR), work, *made, note, against)

    def trainer(self, model: MAE) -> Trainer[Batch]:
        assert self.config.precision
        task = PretrainTask(model, MaskGenerator(ratio=MASK_RATIO), 0).to(self.device).train()
        plan = TrainConfig(
            steps=1,
            warmup_steps=0,
            lr=LR,
            weight_decay=WEIGHT_DECAY,
            betas=BETAS,
            clip_grad=None,
            precision=self.config.precision,
            compile=self.config.compile,
            micro_batch_size=len(self.images),
        )
        return Trainer(task, World(0, 1, self.device), plan)

    def batch(self) -> Batch:
        number = torch.arange(len(self.images), device=self.device)
        return Batch(self.images, None, torch.zeros_like(number), number)

    def theirs(
        self, name: str, model: nn.Module, work: float, against: str, note: str
    ) -> Candidate:
        """A plain, good loop around another library's model: autocast, fused AdamW.

        Its images are normalized before.
        """
        model = model.to(self.device).train()
        if self.config.compile:
            model.compile()
        optimizer = torch.optim.AdamW(
            param_groups_weight_decay(model, WEIGHT_DECAY), LR, BETAS, fused=True
        )
        half = torch.full((2, self.images.shape[1], 1, 1), 0.5, device=self.device)
        images = normalize(self.images, half)
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss: Tensor = model(images)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Candidate(name, step, work, model, optimizer, note, against)


def case_of(config: Bench, device: torch.device) -> Case:
    assert config.batch_size
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    return Case(config, device, torch.randint(0, 256, shape, dtype=torch.uint8, device=device))


def build(
    config: Bench, name: str, decoder_depth: int | None = None, encode_all: bool = False
) -> MAE:
    sizes: dict[str, Any] = size_of(name)
    encoder = ViT((config.image_size,) * 2, patch_size(config, name), 3, **sizes)
    decoder = decoder_config(encoder.embed_dim, depth=decoder_depth)
    return MAE(encoder, decoder, encode_all=encode_all)


def step(config: Bench, device: torch.device) -> dict[str, Any]:
    """A training step of torchmae and of each peer, for each model."""
    peers = find_peers(config.vs or "")
    skipped = [reason for name, reason in WITHOUT.items() if name in (config.vs or "")]
    for reason in skipped:
        logger.info(f"skipped: {reason}")
    return {
        "skipped": skipped,
        "models": {name: one_step(config, name, peers, device) for name in models(config.model)},
    }


def one_step(
    config: Bench, name: str, peers: dict[str, Peer], device: torch.device
) -> dict[str, Any]:
    with seeded(0):
        case = case_of(config, device)
        model = build(config, name)
        candidates = [
            matrix_product(device, config.precision or "fp32"),
            *step_candidates(case, model, peers),
        ]
        seconds = benchmark_interleaved(candidates, config.rounds, device)
        memory = {candidate.name: step_memory_mb(candidate, device) for candidate in candidates}
    product = candidates[0]
    images = len(case.images)
    peak = [product.flops / s for s in seconds[product.name]]
    rows = []
    for one in candidates[1:]:
        own = seconds[one.name]
        row = {
            "name": one.name,
            "images_per_s": median(images / s for s in own),
            "tflops": median(one.flops / s / 1e12 for s in own),
            "share_of_product": median(one.flops / s / most for s, most in zip(own, peak)),
            "peak_memory_mb": memory[one.name],
            "against": one.against,
            "speed": None if one.against is None else speed_beside(own, seconds[one.against]),
            "note": one.note,
            "seconds": own,
        }
        rows.append(row)
    best = {"note": product.note, "tflops": median(peak) / 1e12, "seconds": seconds[product.name]}
    result = {"gflop_per_image": flops(model) / 1e9, "matrix_product": best, "rows": rows}
    logger.info("\n".join(step_table(name, result)))
    return result


def step_candidates(case: Case, model: MAE, peers: dict[str, Peer]) -> Iterator[Candidate]:
    """torchmae first; vit-pytorch again with its usual heads, if they differ, beside torchmae's."""
    described = model.config()
    work = flops(model) * len(case.images)
    yield case.ours("torchmae", model)
    for name, peer in peers.items():
        yield case.theirs(name, peer.build(described, MASK_RATIO), work, "torchmae", peer.note)
    decoder = described["decoder"]
    heads = max(1, decoder["dim"] // HEAD_WIDTH)
    if "vit-pytorch" in peers and heads != decoder["heads"]:
        other = described | {"decoder": decoder | {"heads": heads}}
        text = f"decoder heads of {HEAD_WIDTH}"
        yield case.ours(
            f"torchmae, {text}", MAE.build(other), note="beside vit-pytorch with its usual heads"
        )
        again = peers["vit-pytorch"].build(other, MASK_RATIO)
        yield case.theirs(
            f"vit-pytorch, {text}", again, work, f"torchmae, {text}", "its default: less softmax"
        )


def step_table(name: str, result: dict[str, Any]) -> Iterator[str]:
    product = result["matrix_product"]
    work = f"{result['gflop_per_image']:.2f} GFLOP an image and step"
    yield f"\n{name}: {work}, {MASK_RATIO:.0%} of it hidden"
    yield f"a matrix product of {product['note']} makes {product['tflops']:.3f} TFLOP/s here"
    head = f"{'images/s':>10}{'TFLOP/s':>10}{'of product':>12}{'memory MB':>11}"
    yield f"{'':<34}{head}   speed beside torchmae (least to most)"
    for row in result["rows"]:
        line = f"{row['name']:<34}{row['images_per_s']:>10.4g}{row['tflops']:>10.4g}"
        line += f"{row['share_of_product']:>12.0%}"
        memory = "-" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
        yield f"{line}{memory:>11}   {'1' if row['speed'] is None else spread(row['speed'])}"
    yield from (f"  {row['name']}: {row['note']}" for row in result["rows"] if row["note"])


def wall_clock(config: Bench, device: torch.device) -> dict[str, Any]:
    """The paper's Table 2: operations and (if measured) time of three variants of each model."""
    return {"models": {name: one_table(config, name, device) for name in models(config.model)}}


def one_table(config: Bench, name: str, device: torch.device) -> dict[str, Any]:
    variants = [(True, 8), (False, 8), (False, 1)]
    names = [
        f"mask tokens in the {'encoder' if all_ else 'decoder'}, decoder depth {depth}"
        for all_, depth in variants
    ]
    with (
        seeded(0),
        device if config.measure else torch.device("meta"),
    ):  # to count, no weights are needed
        models = [
            build(config, name, encode_all=all_, decoder_depth=depth) for all_, depth in variants
        ]
    counts = [flops(model) for model in models]
    seconds: dict[str, list[float]] = {}
    if config.measure:
        with seeded(0):
            case = case_of(config, device)
            seconds = benchmark_interleaved(
                [case.ours(n, model) for n, model in zip(names, models)], config.rounds, device
            )
    rows = [
        {
            "name": names[i],
            "gflop_per_image": counts[i] / 1e9,
            "fewer_operations": counts[0] / counts[i],
            "speed": speed_beside(seconds[names[i]], seconds[names[0]]) if seconds else None,
            "paper_speed": PAPER.get((name, depth)) if not all_ else None,
            "seconds": seconds.get(names[i]),
        }
        for i, (all_, depth) in enumerate(variants)
    ]
    logger.info("\n".join(wall_clock_table(name, rows)))
    return {"rows": rows}


def wall_clock_table(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    head = f"{'GFLOP an image':>14}{'fewer by':>10}{'paper faster by':>17}"
    yield f"\n{name:<46}{head}   faster here by (least to most)"
    for row in rows:
        paper = f"{row['paper_speed']}x" if row["paper_speed"] else "-"
        here = spread(row["speed"]) if row["speed"] else "not measured"
        line = f"{row['name']:<46}{row['gflop_per_image']:>14.1f}{row['fewer_operations']:>9.2f}x"
        yield f"{line}{paper:>17}   {here}"
