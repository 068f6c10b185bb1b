"""Which parameters decay, the optimizer, and the learning rate of every step as a pure function."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchmae.errors import choose


def param_groups_weight_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group: matrices decay, 1-D parameters (biases, norms) do not.

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
    """Groups of fine-tuning: the learning rate of layer i is `layer_decay ** (N + 1 - i)` times the head's, where i is 0 for
    the patch embedding, the class token and the positions, 1..N for the blocks, N + 1 for what is behind them.

    1-D parameters, the class token and the positions do not decay (the reference's fine-tuning; paper Table 9).
    """
    depth = {id(p): i for i, layer in enumerate(layers, 1) for p in layer.parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        token = name.endswith(("cls_token", "reg_token", "pos_embed"))
        layer = depth.get(id(parameter), 0 if token or "patch_embed." in name else len(layers) + 1)
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
    """AdamW in its fused form, which can also skip a step on the device without asking the host (`found_inf`)."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def sgd(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.SGD:
    """Gradient descent with momentum, fused as `adamw` is."""
    return torch.optim.SGD(groups, lr=0.0, momentum=betas[0], fused=True)


class LARS(torch.optim.Optimizer):
    """Gradient descent with momentum whose steps are scaled, matrix by matrix, to 0.001 of the size of the weights (You et
    al. 2017); vectors are moved as by SGD. The optimizer of the paper's linear probe (Table 10), for very large batches."""

    TRUST = 0.001
    found_inf: Tensor | None = (
        None  # 1: leave the step out, decided on the device as in the fused optimizers
    )

    def __init__(self, groups: list[dict[str, Any]], momentum: float):
        super().__init__(groups, dict(lr=0.0, momentum=momentum, weight_decay=0.0))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, momentum = parameter.grad, self.state[parameter]["momentum_buffer"]
                if parameter.ndim > 1:
                    gradient = gradient + group["weight_decay"] * parameter
                    sizes = parameter.norm(), gradient.norm()
                    scale = torch.where(
                        (sizes[0] > 0) & (sizes[1] > 0), self.TRUST * sizes[0] / sizes[1], 1.0
                    )
                    gradient = gradient * scale
                moved = group["momentum"] * momentum + gradient
                if self.found_inf is not None:
                    gone = self.found_inf > 0
                    momentum.copy_(torch.where(gone, momentum, moved))
                    parameter.sub_(torch.where(gone, torch.zeros_like(moved), group["lr"] * moved))
                else:
                    momentum.copy_(moved)
                    parameter.sub_(group["lr"] * moved)


def lars(groups: list[dict[str, Any]], betas: tuple[float, float]) -> LARS:
    """LARS with the first of the betas as momentum."""
    return LARS(groups, betas[0])


OPTIMIZERS: dict[
    str, Callable[[list[dict[str, Any]], tuple[float, float]], torch.optim.Optimizer]
] = {
    "adamw": adamw,
    "lars": lars,
    "sgd": sgd,
}


def init_optimizer_state(optimizer: str, parameter: Tensor) -> dict[str, Tensor]:
    """What the named optimizer keeps for a parameter, before its first step."""
    choose(OPTIMIZERS, optimizer, "optimizer")
    if optimizer == "adamw":
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=parameter.device), **zeros}
    return {"momentum_buffer": torch.zeros_like(parameter)}


def peak_lr(base_lr: float, batch_size: int) -> float:
    """The linear scaling rule: `base_lr * batch_size / 256` (paper, appendix A.1)."""
    return base_lr * batch_size / 256


def lr_at(step: int, steps: int, warmup: int, peak: float, least: float = 0.0) -> float:
    """The learning rate of a step (0-based): linear warm-up to the peak, then half a cosine down to `least`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return least + (peak - least) * 0.5 * (1 + math.cos(math.pi * done))


def ema_decay_at(step: int, decay: float | None) -> float:
    """The share of itself that the average of the weights keeps at a step (0-based): `decay` in the end, but less at first,
    so that a short training does not average its start: (1 + step) / (10 + step), a window of about a tenth of the past."""
    return 0.0 if decay is None else min(decay, (1 + step) / (10 + step))
