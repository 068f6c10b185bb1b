"""`mae bench`: how fast a training step is beside other libraries, and what leaving mask tokens out of the encoder saves."""

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from torchmae.data.loader import Batch
from torchmae.errors import RunError, UserError, choose
from torchmae.models.mae import MAE
from torchmae.models.masking import kept
from torchmae.models.patches import grid_of
from torchmae.models.vit import ViT, size_of
from torchmae.tasks import runs, settings
from torchmae.tasks.bench_peers import WITHOUT, Peer, find_peers
from torchmae.tasks.bench_timing import (
    Contender,
    machine,
    matrix_product,
    race,
    speed_beside,
    step_memory_mb,
    threads,
    versions,
)
from torchmae.tasks.pretrain import PretrainTask
from torchmae.train.checkpoint import write_text
from torchmae.train.distributed import World, find_device
from torchmae.train.optim import parameter_groups
from torchmae.train.step import Plan, Step

MASK_RATIO = 0.75
NARROW = 64  # width of a decoder head in vit-pytorch unless asked otherwise; the paper's are 32 wide
LR, WEIGHT_DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)
# Table 2 of the paper: wall-clock time with mask tokens in the encoder and 8 decoder blocks, over that without and with
# so many decoder blocks (128 TPU-v3 cores, batch 4096).
PAPER = {("vit_large", 8): 2.8, ("vit_large", 1): 3.7, ("vit_huge", 8): 3.5, ("vit_huge", 1): 4.1}


@dataclass(frozen=True)
class Bench:
    """Measure speed on this machine: numbers to the screen, and with all rounds to a JSON file.

    WHAT is step (forward, backward and AdamW beside other libraries) or wall-clock (the paper's Table 2: mask tokens in the
    encoder or not, decoder depth 8 or 1). Everything is measured in turns in one process; trust the ratios first.
    """

    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WHAT")]
    """step or wall-clock."""
    model: str | None = None
    """Sizes such as vit_base, commas between. Default: vit_base; for wall-clock vit_large,vit_huge."""
    batch_size: int | None = None
    """Images of a step. Default: step 16, on a GPU 256; wall-clock 8, on a GPU 64."""
    image_size: int = 224
    """Side in pixels."""
    patch_size: int | None = None
    """Side of a patch in pixels. Default: as in the paper 16, for vit_huge 14."""
    precision: str | None = None
    """fp32 or bf16. Default: bf16 where the device is fast at it."""
    compile: bool = False
    """Use torch.compile, for all."""
    vs: str | None = None
    """step: libraries to compare with, commas between, or none. Default: transformers,lightly,vit-pytorch."""
    measure: bool = True
    """wall-clock: measure times too; otherwise operations are only counted."""
    rounds: int = 5
    """Measurements of each; medians are shown."""
    threads: int | None = None
    """CPU threads. Default: torch's own choice."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: str = "bench.json"
    """File of the results."""


def run(config: Bench) -> Path:
    """Measures, prints a table a model, writes all numbers to `config.out` and gives it."""
    measure = choose(WHAT, config.what, "WHAT")
    check(config)
    device = find_device(config.device)
    config = resolve(config, device)
    names = [name.strip() for name in (config.model or "").split(",")]
    for name in names:
        size_of(name)
        grid_of((config.image_size,) * 2, patch_size(config, name))
    peers = find_peers(config.vs or "")
    out = Path(config.out)
    with threads(config.threads):
        result: dict[str, Any] = {
            "command": command(config),
            "machine": machine(device),
            "versions": versions(("torch", "torchmae", "timm", *peers)),
            "settings": {name: value for name, value in asdict(config).items() if name != "out"},
            "left_out": [reason for name, reason in WITHOUT.items() if name in (config.vs or "")],
            "models": {},
        }
        here = result["machine"]
        print(
            f"{here['device']}, {here['threads']} threads, load {here['load']}; {config.precision}, batch {config.batch_size}"
            f"{', compiled' if config.compile else ''}; medians of {config.rounds} rounds"
        )
        for reason in result["left_out"]:
            print(f"left out: {reason}")
        for name in names:
            result["models"][name] = measure(config, name, peers, device)
    try:
        write_text(out, json.dumps(result, indent=1))
    except OSError as error:
        raise RunError(f"could not write {out}: {error.strerror or error}") from error
    print(f"{out}: all rounds")
    return out


def check(config: Bench) -> None:
    """What can be known to be wrong before anything is built."""
    settings.check_numbers(config, ("batch_size", "image_size", "patch_size", "rounds", "threads"), ())
    if config.precision not in (None, "fp32", "bf16"):
        raise UserError(f"--precision {config.precision}: fp32 or bf16")
    if config.what != "step" and config.vs is not None:
        raise UserError("--vs names libraries for mae bench step: leave it out")
    if config.what != "wall-clock" and not config.measure:
        raise UserError("--no-measure goes with mae bench wall-clock only: leave it out")
    if Path(config.out).is_dir():
        raise UserError(f"--out {config.out} is a folder: name a file such as {Path(config.out) / 'bench.json'}")
    try:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {config.out} cannot be written: {error.strerror or error}") from error


def resolve(config: Bench, device: torch.device) -> Bench:
    """The settings with nothing left open but the patch size, which is the model's."""
    step, on_gpu = config.what == "step", device.type == "cuda"
    fast = settings.precision(device)
    return replace(
        config,
        model=config.model or ("vit_base" if step else "vit_large,vit_huge"),
        batch_size=config.batch_size or ((256 if on_gpu else 16) if step else (64 if on_gpu else 8)),
        precision=config.precision or ("bf16" if fast == "bf16" else "fp32"),
        vs=(config.vs or "transformers,lightly,vit-pytorch") if step else None,
    )


def patch_size(config: Bench, model: str) -> int:
    return config.patch_size or (14 if model == "vit_huge" else 16)


def command(config: Bench) -> str:
    """The command line of these settings."""
    words = ["mae", "bench", config.what]
    for field in fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if field.name in ("what", "out") or value == field.default:
            continue
        words += [flag, str(value)] if not isinstance(value, bool) else [flag if value else f"--no-{field.name}"]
    return shlex.join(words)


def flops(model: MAE, mask_ratio: float = MASK_RATIO) -> int:
    """Operations of a training step for an image: matrix products, an addition and a multiplication each, as the paper's
    reference does them: all patches embedded, encoder on the visible tokens (on all with `encode_all`), decoder and
    prediction on all tokens. The backward pass is twice the forward pass, once for the embedding (pixels need no gradient).

    What an implementation leaves out or computes twice does not change the count: equal work, whoever does it.
    """
    encoder, decoder, patches = model.encoder, model.decoder, math.prod(model.encoder.grid)
    dim, width = encoder.embed_dim, decoder.norm.normalized_shape[0]
    encoded = 1 + (patches if model.encode_all else kept(patches, mask_ratio))

    def linear(tokens: int, inputs: int, outputs: int) -> int:
        return 2 * tokens * inputs * outputs

    def block(tokens: int, dim: int, hidden: int) -> int:
        return linear(tokens, dim, 4 * dim + 2 * hidden) + 2 * linear(tokens, dim, tokens)

    embedding = linear(patches, encoder.patch_size**2 * encoder.channels, dim)
    rest = encoder.depth * block(encoded, dim, int(dim * encoder.mlp_ratio)) + linear(encoded, dim, width)
    rest += len(decoder.blocks) * block(1 + patches, width, 4 * width) + linear(1 + patches, width, model.target.width)
    return 2 * embedding + 3 * rest


class Case(NamedTuple):
    """What all contenders for one model have in common."""

    config: Bench
    device: torch.device
    images: Tensor  # uint8, on the device

    def ours(self, name: str, model: MAE, against: str | None = None, note: str = "") -> Contender:
        """The very step of `mae pretrain`: pixels normalised, masks drawn, statistics head, gradient norm and all."""
        config, count = self.config, len(self.images)
        assert config.precision
        task = PretrainTask(model, "random", MASK_RATIO, 0).to(self.device).train()
        plan = Plan(1, 0, LR, WEIGHT_DECAY, BETAS, None, config.precision, config.compile, micro_batch=count)
        trainer = Step(task, World(0, 1, self.device), plan)
        number = torch.arange(count, device=self.device)
        batch = Batch(self.images, torch.zeros_like(number), number, [])
        work = flops(model) * count
        return Contender(name, lambda: trainer(batch, LR), work, task.model, trainer.optimizer, note, against)

    def theirs(self, name: str, model: nn.Module, work: float, against: str, note: str) -> Contender:
        """The plainest good loop around another library's model: autocast, fused AdamW; images are normalised already."""
        model = model.to(self.device).train()
        if self.config.compile:
            model.compile()
        optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), LR, BETAS, fused=True)
        images = (self.images.float() / 255 - 0.5) / 0.5
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss: Tensor = model(images)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Contender(name, step, work, model, optimizer, note, against)


def case_of(config: Bench, device: torch.device) -> Case:
    assert config.batch_size
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    return Case(config, device, torch.randint(0, 256, shape, dtype=torch.uint8, device=device))


def build(config: Bench, name: str, **decoder: Any) -> MAE:
    size: dict[str, Any] = size_of(name)
    return MAE(ViT((config.image_size,) * 2, patch_size(config, name), 3, **size), **decoder)


def step(config: Bench, name: str, peers: dict[str, Peer], device: torch.device) -> dict[str, Any]:
    """A training step of torchmae and of each peer."""
    with runs.seeded(0):
        case, model = case_of(config, device), build(config, name)
        contenders = [matrix_product(device, config.precision or "fp32"), *step_contenders(case, model, peers)]
        seconds = race(contenders, config.rounds, device)
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
    measured = {"note": product.note, "tflops": median(peak) / 1e12, "seconds": seconds[product.name]}
    result = {"gflop_per_image": flops(model) / 1e9, "matrix_product": measured, "rows": rows}
    print("\n".join(step_table(name, result)), flush=True)
    return result


def step_contenders(case: Case, model: MAE, peers: dict[str, Peer]) -> Iterator[Contender]:
    """torchmae first. Where heads of 64 make another decoder, vit-pytorch has a second row with them, beside torchmae's own."""
    described, work = model.config(), flops(model) * len(case.images)
    yield case.ours("torchmae", model)
    for name, peer in peers.items():
        yield case.theirs(name, peer.build(described, MASK_RATIO), work, "torchmae", peer.note)
    heads = max(1, described["decoder_dim"] // NARROW)
    if "vit-pytorch" in peers and heads != described["decoder_heads"]:
        other, text = described | {"decoder_heads": heads}, f"decoder heads of {NARROW}"
        yield case.ours(f"torchmae, {text}", MAE.build(other), note="beside vit-pytorch with its usual heads")
        again = peers["vit-pytorch"].build(other, MASK_RATIO)
        yield case.theirs(f"vit-pytorch, {text}", again, work, f"torchmae, {text}", "its default: less softmax")


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


def spread(speed: dict[str, float]) -> str:
    return f"{speed['median']:.2f} ({speed['least']:.2f} to {speed['most']:.2f})"


def wall_clock(config: Bench, name: str, peers: dict[str, Peer], device: torch.device) -> dict[str, Any]:
    """The paper's Table 2: operations, and (if measured) time, beside mask tokens in the encoder and 8 decoder blocks."""
    variants = [(True, 8), (False, 8), (False, 1)]
    names = [
        f"mask tokens in the {'encoder' if all_ else 'decoder'}, decoder depth {depth}" for all_, depth in variants
    ]
    with runs.seeded(0), device if config.measure else torch.device("meta"):  # to count, no weights are needed
        models = [build(config, name, encode_all=all_, decoder_depth=depth) for all_, depth in variants]
    counts = [flops(model) for model in models]
    seconds: dict[str, list[float]] = {}
    if config.measure:
        with runs.seeded(0):
            case = case_of(config, device)
            seconds = race([case.ours(n, model) for n, model in zip(names, models)], config.rounds, device)
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
    print("\n".join(wall_clock_table(name, rows)), flush=True)
    return {"rows": rows}


def wall_clock_table(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"\n{name:<46}{'GFLOP an image':>14}{'fewer by':>10}{'paper faster by':>17}   faster here by (least to most)"
    for row in rows:
        paper = f"{row['paper_speed']}x" if row["paper_speed"] else "-"
        here = spread(row["speed"]) if row["speed"] else "not measured"
        line = f"{row['name']:<46}{row['gflop_per_image']:>14.1f}{row['fewer_operations']:>9.2f}x"
        yield f"{line}{paper:>17}   {here}"


WHAT = {"step": step, "wall-clock": wall_clock}
