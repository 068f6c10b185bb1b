"""Which parameters decay, the optimizers, and the learning rate and EMA decay of every step."""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchmae.errors import choose
from torchmae.settings.groups import OutputOptions, ResolvedRuntimeOptions
from torchmae.train.config import DECAY_SHARE, TrainConfig


def param_groups_weight_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group: 1-D ones (biases, norms) do not decay.

    The class and mask tokens are 3-D and decay, as in the reference's pre-training.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [(name, p) for name, p in trainable if p.ndim > 1]
    plain = [(name, p) for name, p in trainable if p.ndim <= 1]
    groups = [(decayed, weight_decay), (plain, 0.0)]
    return [
        {"params": [p for _, p in members], "names": [n for n, _ in members], "weight_decay": decay}
        for members, decay in groups
        if members
    ]


def param_groups_layer_decay(
    model: nn.Module, layers: list[nn.Module], weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups of fine-tuning, where early layers learn more slowly (paper Table 9).

    The learning rate of layer i is `layer_decay ** (N + 1 - i)` times the head's, where i is 0 for
    what the model has before the blocks (the patch embedding, the class token and the positions),
    1..N for the blocks, N + 1 for what follows them. 1-D parameters, tokens and the positions do
    not decay, as in the reference's fine-tuning.

    Args:
        model: its trainable parameters are grouped.
        layers: the N blocks, first to last.
        weight_decay: of everything else.
        layer_decay: in (0, 1].
    """
    depth = {id(p): i for i, layer in enumerate(layers, 1) for p in layer.parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    layer = 0
    for name, parameter in model.named_parameters():
        # The order of a model is that of its forward pass: what is not in a block comes before
        # the first or after the last one.
        layer = depth.get(id(parameter), len(layers) + 1 if layer else 0)
        if not parameter.requires_grad:
            continue
        token = name.endswith(("_token", "pos_embed", "relative_position_bias_table"))
        decay = 0.0 if token or parameter.ndim <= 1 else weight_decay
        scale = layer_decay ** (len(layers) + 1 - layer)
        fresh: dict[str, Any] = {
            "params": [],
            "names": [],
            "weight_decay": decay,
            "lr_scale": scale,
        }
        group = groups.setdefault((scale, decay), fresh)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Fused AdamW, which can skip a step on the device without the host (`found_inf`)."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def sgd(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.SGD:
    """SGD with momentum (the first beta), fused as `adamw` is."""
    return torch.optim.SGD(groups, lr=0.0, momentum=betas[0], fused=True)


class LARS(torch.optim.Optimizer):
    """SGD with momentum and a trust ratio for each matrix (You et al. 2017, arXiv 1708.03888).

    1-D parameters move as by SGD. The optimizer of the paper's linear probe (Table 10), for very
    large batches.
    """

    TRUST = 0.001
    # 1: skip the step, decided on the device as in the fused optimizers.
    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], momentum: float):
        super().__init__(groups, dict(lr=0.0, momentum=momentum, weight_decay=0.0))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, momentum = parameter.grad, self.state[parameter]["momentum_buffer"]
                if parameter.ndim > 1:
                    gradient = gradient + group["weight_decay"] * parameter
                    weight_norm = parameter.norm()
                    gradient_norm = gradient.norm()
                    usable = (weight_norm > 0) & (gradient_norm > 0)
                    gradient = gradient * torch.where(
                        usable, self.TRUST * weight_norm / gradient_norm, 1.0
                    )
                velocity = group["momentum"] * momentum + gradient
                change = group["lr"] * velocity
                if self.found_inf is not None:
                    skip = self.found_inf > 0
                    velocity = torch.where(skip, momentum, velocity)
                    change = torch.where(skip, torch.zeros_like(change), change)
                momentum.copy_(velocity)
                parameter.sub_(change)


def lars(groups: list[dict[str, Any]], betas: tuple[float, float]) -> LARS:
    """LARS with the first beta as its momentum."""
    return LARS(groups, betas[0])


MakeOptimizer = Callable[[list[dict[str, Any]], tuple[float, float]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {"adamw": adamw, "lars": lars, "sgd": sgd}


def init_optimizer_state(optimizer: str, parameter: Tensor) -> dict[str, Tensor]:
    """The named optimizer's state for a parameter before its first step."""
    choose(OPTIMIZERS, optimizer, "optimizer")
    if optimizer == "adamw":
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=parameter.device), **zeros}
    return {"momentum_buffer": torch.zeros_like(parameter)}


def peak_lr(base_lr: float, batch_size: int) -> float:
    """The linear scaling rule: `base_lr * batch_size / 256` (paper, appendix A.1)."""
    return base_lr * batch_size / 256


@runtime_checkable
class ResolvedOptim(Protocol):
    """What every training has settled of `OptimOptions`."""

    @property
    def epochs(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def base_lr(self) -> float: ...
    @property
    def warmup_epochs(self) -> float: ...
    @property
    def clip_grad(self) -> float | None: ...
    @property
    def precision(self) -> str: ...


def train_config_of(
    optim: ResolvedOptim,
    runtime: ResolvedRuntimeOptions,
    output: OutputOptions,
    images: int,
    **own: Any,
) -> TrainConfig:
    """What `fit` is told for a training on so many images.

    Args:
        optim: how long and how fast.
        runtime: how the machine is used.
        output: what is written.
        images: of an epoch.
        own: what else a verb decides, by the names of `TrainConfig`.
    """
    steps_per_epoch = images / optim.batch_size
    return TrainConfig(
        steps=max(1, round(optim.epochs * steps_per_epoch)),
        warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
        lr=peak_lr(optim.base_lr, optim.batch_size),
        clip_grad=optim.clip_grad,
        precision=optim.precision,
        compile=runtime.compile,
        fsdp=runtime.fsdp,
        workers=runtime.workers,
        micro_batch_size=runtime.micro_batch_size,
        log_every=output.log_every,
        save_minutes=output.save_minutes,
        trackers=output.tracker,
        timeout_minutes=runtime.timeout_minutes,
        **own,
    )


def cosine(step: int, steps: int, warmup: int) -> float:
    """Half a cosine from the end of the warm-up to the end of the training (paper, Table 8)."""
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def wsd(step: int, steps: int, warmup: int) -> float:
    """1 up to `decay_start`, then 1 - sqrt of the decay that is done.

    Warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395) with the decay that Hägele et al. 2024
    (arXiv 2405.18392) found better than a linear one, over a fifth of the steps.
    """
    start = decay_start(steps)
    return 1 - math.sqrt(max(0, step - start) / max(1, steps - start))


# The share of the way from `min_lr` to the peak at a step after the warm-up.
SHARES: dict[str, Callable[[int, int, int], float]] = {"cosine": cosine, "wsd": wsd}


def decay_start(steps: int) -> int:
    """Steps of a wsd schedule before its decay; step `decay_start` is still at the peak."""
    return steps - round(DECAY_SHARE * steps)


def lr_at(
    step: int,
    steps: int,
    warmup: int,
    peak: float,
    min_lr: float = 0.0,
    schedule: str = "cosine",
) -> float:
    """The learning rate of a step: linear warm-up from 0, then what the schedule says.

    As in the reference, a step has the learning rate of the time at which it begins: that of step 0
    is 0 (its gradient enters the optimizer's averages only), that of step `warmup` is the peak.

    Args:
        step: 0-based.
        steps: of the whole training.
        warmup: steps before the peak; 0 for no warm-up.
        peak: the highest learning rate.
        min_lr: where it ends.
        schedule: a name in `SHARES`.
    """
    if step < warmup:
        return peak * step / warmup
    return min_lr + (peak - min_lr) * SHARES[schedule](step, steps, warmup)


def trunk(plan: TrainConfig) -> int | None:
    """Steps after which a wsd training is still the beginning of all longer ones, and its next one
    is not; None for other schedules."""
    return decay_start(plan.steps) if plan.schedule == "wsd" else None


def can_lengthen(plan: TrainConfig, done: int) -> bool:
    """Whether `done` steps of this schedule are also the first steps of any longer one.

    Only then does more of the same schedule give the weights of a run that was longer from the
    start: during warm-up, before the decay of wsd, or where the learning rate stays at its peak.
    The cosine is stretched over all steps, so after warm-up every learning rate depends on their
    number.
    """
    return done <= max(plan.warmup_steps, trunk(plan) or 0) or plan.min_lr == plan.lr


def ema_decay_at(step: int, decay: float | None) -> float:
    """How much of themselves the EMA weights retain at a step (0-based): at most `decay`.

    At first it is (1 + step) / (10 + step), a window of about a tenth of the past, so that the EMA
    of a short training does not hold its random start.
    """
    return 0.0 if decay is None else min(decay, (1 + step) / (10 + step))
