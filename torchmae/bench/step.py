"""`mae bench step` and `mae bench wall-clock`: a training step beside other libraries; what leaving mask tokens out of the
encoder saves."""

import logging
import math
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmae.bench.config import Bench, models, patch_size
from torchmae.bench.peers import WITHOUT, Peer, find_peers
from torchmae.bench.timing import (
    Candidate,
    benchmark_interleaved,
    matrix_product,
    speed_beside,
    spread,
    step_memory_mb,
)
from torchmae.data.loader import Batch
from torchmae.models.decoders import decoder_config
from torchmae.models.mae import MAE
from torchmae.models.masking import num_visible
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


NARROW = (
    64  # width of a decoder head in vit-pytorch unless asked otherwise; the paper's are 32 wide
)


LR, WEIGHT_DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)


# Table 2 of the paper: wall-clock time with mask tokens in the encoder and 8 decoder blocks, over that without and with
# so many decoder blocks (128 TPU-v3 cores, batch 4096).
PAPER = {("vit_large", 8): 2.8, ("vit_large", 1): 3.7, ("vit_huge", 8): 3.5, ("vit_huge", 1): 4.1}


def flops(model: MAE, mask_ratio: float = MASK_RATIO) -> int:
    """Operations of a training step for an image: matrix products, an addition and a multiplication each, as the paper's
    reference does them: all patches embedded, encoder on the visible tokens (on all with `encode_all`), decoder and
    prediction on all tokens. The backward pass is twice the forward pass, once for the embedding (pixels need no gradient).

    What an implementation leaves out or computes twice does not change the count: equal work, whoever does it.
    """
    encoder, decoder, patches = model.encoder, model.decoder, math.prod(model.encoder.grid)
    assert isinstance(encoder, ViT)
    dim, width = encoder.embed_dim, decoder.config.dim
    encoded = 1 + (patches if model.encode_all else num_visible(patches, mask_ratio))

    def linear(tokens: int, inputs: int, outputs: int) -> int:
        return 2 * tokens * inputs * outputs

    def block(tokens: int, dim: int, hidden: int) -> int:
        return linear(tokens, dim, 4 * dim + 2 * hidden) + 2 * linear(tokens, dim, tokens)

    embedding = linear(patches, math.prod(encoder.patch) * encoder.channels, dim)
    rest = encoder.depth * block(encoded, dim, int(dim * encoder.mlp_ratio)) + linear(
        encoded, dim, width
    )
    rest += len(decoder.blocks) * block(1 + patches, width, 4 * width) + linear(
        1 + patches, width, model.target.width
    )
    return 2 * embedding + 3 * rest


class Case(NamedTuple):
    """What all contenders for one model have in common."""

    config: Bench
    device: torch.device
    images: Tensor  # uint8, on the device

    def ours(self, name: str, model: MAE, against: str | None = None, note: str = "") -> Candidate:
        """The very step of `mae pretrain`: pixels normalised, masks drawn, statistics head, gradient norm and all."""
        trainer, batch, work = self.trainer(model), self.batch(), flops(model) * len(self.images)
        return Candidate(
            name,
            lambda: trainer(batch, LR),
            work,
            trainer.task.model,
            trainer.optimizer,
            note,
            against,
        )

    def trainer(self, model: MAE) -> Trainer:
        assert self.config.precision
        task = PretrainTask(model, "random", MASK_RATIO, 0).to(self.device).train()
        numbers = (1, 0, LR, WEIGHT_DECAY, BETAS, None)
        plan = TrainConfig(
            *numbers, self.config.precision, self.config.compile, micro_batch_size=len(self.images)
        )
        return Trainer(task, World(0, 1, self.device), plan)

    def batch(self) -> Batch:
        number = torch.arange(len(self.images), device=self.device)
        return Batch(self.images, None, torch.zeros_like(number), number)

    def theirs(
        self, name: str, model: nn.Module, work: float, against: str, note: str
    ) -> Candidate:
        """The plainest good loop around another library's model: autocast, fused AdamW; images are normalised already."""
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
    left_out = [reason for name, reason in WITHOUT.items() if name in (config.vs or "")]
    for reason in left_out:
        logger.info(f"left out: {reason}")
    return {
        "left_out": left_out,
        "models": {name: one_step(config, name, peers, device) for name in models(config.model)},
    }


def one_step(
    config: Bench, name: str, peers: dict[str, Peer], device: torch.device
) -> dict[str, Any]:
    with seeded(0):
        case, model = case_of(config, device), build(config, name)
        contenders = [
            matrix_product(device, config.precision or "fp32"),
            *step_contenders(case, model, peers),
        ]
        seconds = benchmark_interleaved(contenders, config.rounds, device)
        memory = {contender.name: step_memory_mb(contender, device) for contender in contenders}
    product, images = contenders[0], len(case.images)
    peak = [product.flops / s for s in seconds[product.name]]
    rows = []
    for one in contenders[1:]:
        own = seconds[one.name]
        row = {
            "name": one.name,
            "images_per_s": median(images / s for s in own),
            "tflops": median(one.flops / s / 1e12 for s in own),
            "share_of_product": median(one.flops / s / best for s, best in zip(own, peak)),
            "peak_memory_mb": memory[one.name],
            "against": one.against,
            "speed": None if one.against is None else speed_beside(own, seconds[one.against]),
            "note": one.note,
            "seconds": own,
        }
        rows.append(row)
    measured = {
        "note": product.note,
        "tflops": median(peak) / 1e12,
        "seconds": seconds[product.name],
    }
    result = {"gflop_per_image": flops(model) / 1e9, "matrix_product": measured, "rows": rows}
    logger.info("\n".join(step_table(name, result)))
    return result


def step_contenders(case: Case, model: MAE, peers: dict[str, Peer]) -> Iterator[Candidate]:
    """torchmae first. Where heads of 64 make another decoder, vit-pytorch has a second row with them, beside torchmae's own."""
    described, work = model.config(), flops(model) * len(case.images)
    yield case.ours("torchmae", model)
    for name, peer in peers.items():
        yield case.theirs(name, peer.build(described, MASK_RATIO), work, "torchmae", peer.note)
    decoder = described["decoder"]
    heads = max(1, decoder["dim"] // NARROW)
    if "vit-pytorch" in peers and heads != decoder["heads"]:
        other = described | {"decoder": decoder | {"heads": heads}}
        text = f"decoder heads of {NARROW}"
        yield case.ours(
            f"torchmae, {text}", MAE.build(other), note="beside vit-pytorch with its usual heads"
        )
        again = peers["vit-pytorch"].build(other, MASK_RATIO)
        yield case.theirs(
            f"vit-pytorch, {text}", again, work, f"torchmae, {text}", "its default: less softmax"
        )


def step_table(name: str, result: dict[str, Any]) -> Iterator[str]:
    product = result["matrix_product"]
    yield f"\n{name}: {result['gflop_per_image']:.2f} GFLOP an image and step, {MASK_RATIO:.0%} of it hidden"
    yield f"a matrix product of {product['note']} makes {product['tflops']:.3f} TFLOP/s here"
    head = f"{'images/s':>10}{'TFLOP/s':>10}{'of product':>12}{'memory MB':>11}"
    yield f"{'':<34}{head}   speed beside torchmae (least to most)"
    for row in result["rows"]:
        line = f"{row['name']:<34}{row['images_per_s']:>10.4g}{row['tflops']:>10.4g}{row['share_of_product']:>12.0%}"
        memory = "-" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
        yield f"{line}{memory:>11}   {'1' if row['speed'] is None else spread(row['speed'])}"
    yield from (f"  {row['name']}: {row['note']}" for row in result["rows"] if row["note"])


def wall_clock(config: Bench, device: torch.device) -> dict[str, Any]:
    """The paper's Table 2: operations, and (if measured) time, beside mask tokens in the encoder and 8 decoder blocks."""
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
    yield f"\n{name:<46}{'GFLOP an image':>14}{'fewer by':>10}{'paper faster by':>17}   faster here by (least to most)"
    for row in rows:
        paper = f"{row['paper_speed']}x" if row["paper_speed"] else "-"
        here = spread(row["speed"]) if row["speed"] else "not measured"
        line = f"{row['name']:<46}{row['gflop_per_image']:>14.1f}{row['fewer_operations']:>9.2f}x"
        yield f"{line}{paper:>17}   {here}"
