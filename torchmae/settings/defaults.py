"""What is chosen for a setting that is left open: one table of rules a verb, each with its words
for `--help` and its reason."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torchmae.errors import UserError
from torchmae.settings.options import build, requested, size_text

R = TypeVar("R")

SIDES = (224, 192, 160, 128, 112, 96, 80, 64, 48, 32, 28, 24, 16, 8)  # usual image sides in pixels


class Choice(NamedTuple):
    """What is taken for a setting that was left open, and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Facts:
    """What rules may depend on, besides the other settings.

    Attributes:
        images: images to train on; `val_images` to validate on.
        height, width: of the images, in pixels: the median, or what the starting weights were
            trained at.
        channels: what the data has; `dtype` of its pixels.
        aspects: height over width at 16 quantiles of the images.
        grey: whether the images have no colour, also where they are stored as colour images.
        device: "cpu", "cuda" or "mps".
        precision: the lowest that the device is fast at.
        cores: CPU cores that this process may use, shared by `local_processes` on this machine.
        processes: all processes of this run.
        embed_dim: width of an encoder that exists already (of --from), whose size may have no name.
        run_size: the image size of the run that training starts from, if it starts from one.
        run_patch: the patch of that run.
        seconds_per_step: measured, for `--minutes`.
        compile: what measuring said of torch.compile; None: the training is too short to ask.
    """

    images: int
    height: int
    width: int
    channels: int
    aspects: tuple[float, ...] = ()
    grey: bool = False
    dtype: str = "uint8"
    device: str = "cpu"
    precision: str = "fp32"
    cores: int = 1
    processes: int = 1
    local_processes: int = 1
    val_images: int = 0
    embed_dim: int | None = None
    run_size: tuple[int, ...] | None = None
    run_patch: tuple[int, ...] | None = None
    seconds_per_step: float | None = None
    compile: Choice | None = None


class Rule(NamedTuple):
    """How a setting is chosen.

    Attributes:
        words: the default for `--help`.
        choose: the choice, from the facts and from the settings that are known by then (those
            before it in its table too).
    """

    words: str
    choose: Callable[[Facts, Mapping[str, Any]], Choice]


def scaled(rule: Rule) -> Rule:
    """The learning rate of a rule times `lr_scale`, by which mae compare searches."""

    def choose_lr(facts: Facts, values: Mapping[str, Any]) -> Choice:
        value, reason = rule.choose(facts, values)
        factor = values["lr_scale"]
        return Choice(value * factor, reason + (f", times {factor:.3g}" if factor != 1 else ""))

    return rule._replace(choose=choose_lr)


def resolve(
    config: Any, resolved: type[R], rules: Mapping[str, Rule], facts: Facts
) -> tuple[R, dict[str, Choice]]:
    """The config with nothing left to choose, and what was chosen for each setting that was None.

    Args:
        config: settings as they were requested.
        resolved: the config class whose types say what is no longer None.
        rules: how to choose, by the name of a setting, in the order in which they are chosen.
        facts: what the rules may depend on.
    """
    values = requested(config)
    chosen: dict[str, Choice] = {}
    for name, rule in rules.items():
        if values[name] is None:
            chosen[name] = rule.choose(facts, values)
            values[name] = chosen[name].value
    return build(resolved, values), chosen


def reasons(chosen: Mapping[str, Choice]) -> list[str]:
    """A line for each choice, for the plan: name, value, reason."""
    lines = []
    for name, choice in chosen.items():
        value = f"{choice.value:.4g}" if isinstance(choice.value, float) else str(choice.value)
        if isinstance(choice.value, bool):
            value = "on" if choice.value else "off"
        lines.append(f"{name.replace('_', ' '):>17}  {value:<9}  {choice.reason}")
    return lines


def why(chosen: Mapping[str, Choice]) -> dict[str, str]:
    """The reasons by the names of the settings, for config.json."""
    return {name: choice.reason for name, choice in chosen.items()}


def largest_side(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """The image size: that of the run, else the largest usual side that the median image has."""
    if facts.run_size is not None:
        return Choice(size_text(facts.run_size), "the run's")
    least = min(facts.height, facts.width)
    side = next((side for side in SIDES if side <= least), SIDES[-1])
    return Choice(str(side), f"the median image is {facts.width}x{facts.height}")


def patch_side(size: tuple[int, ...]) -> int:
    """The smallest patch, of at most 16 px, that cuts an image into at most 144 patches; 16 for 224
    px, 4 for 32 px.

    Raises:
        UserError: no patch of 2 to 16 px makes a grid of a sensible size.
    """
    common, area = math.gcd(*size), math.prod(size)
    allowed = [p for p in range(2, 17) if common % p == 0]
    patch = next((p for p in allowed if area <= 144 * p * p), max(allowed, default=1))
    if patch < 16 and area > 400 * patch * patch:
        near = size_text(tuple(max(16, round(side / 16) * 16) for side in size))
        raise UserError(
            f"--image-size {size_text(size)} is divisible by no patch of 2 to 16 px that makes a "
            "grid of a "
            f"sensible size: use --image-size {near}, or name a --patch-size"
        )
    return patch


def patch_choice(size: tuple[int, ...]) -> Choice:
    """`patch_side`, with a word where the image size leaves only an unusual one."""
    side, reason = patch_side(size), "at most 144 patches an image, or 16 px"
    near = tuple(-(-length // 8) * 8 for length in size)
    usual = patch_side(near) if size != near else side
    if side % 2 and side != 7 and usual != side:  # 7: of 28 px
        reason = (
            f"unusual: {size_text(size)} px cannot be cut into patches of {usual} px; "
            f"--image-size {size_text(near)} can"
        )
    return Choice(side, reason)


def batch_of(images: int, on_gpu: bool, processes: int) -> int:
    """A power of two, at most 32 on a CPU (short runs need many steps) and 1024 on a GPU, that
    leaves at least 8 steps an epoch where there is data for it; never more than the data set."""
    limit = min(1024 if on_gpu else 32, max(16, images // 8), images)
    power = 1 << (limit.bit_length() - 1)
    return max(processes, power // processes * processes)


def pretraining_lr(width: int, batch: int) -> float:
    """The base learning rate of a pre-training: the paper's 1.5e-4 for encoders of 768 and more.

    Smaller models bear more, and the linear rule starves small batches: for them the peak is the
    paper's 2.4e-3 at batch 4096 and falls with the fourth root of the batch (7e-4 at 32).
    """
    return 1.5e-4 if width >= 768 else 1.5e-4 * (4096 / batch) ** 0.75


def epochs_in_minutes(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """As many epochs as fit into `minutes` at the measured time of a step; at least one step."""
    seconds = 60 * values["minutes"]
    steps = max(1, round(seconds / (facts.seconds_per_step or seconds)))
    speed = values["batch_size"] / (facts.seconds_per_step or seconds)
    epochs = steps * values["batch_size"] / facts.images
    return Choice(epochs, f"{values['minutes']:g} min at {speed:.1f} images/s, measured")


def best_precision(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """bf16 where it is fast: GPUs that have it, CPUs with AMX or AVX512-BF16 (1.2 to 2.2 times
    fp32, measured)."""
    fast = facts.precision != "fp32"
    return Choice(
        facts.precision, "the device is fast at it" if fast else "the device has no fast bf16"
    )


def workers_for(cores: int, on_gpu: bool) -> int:
    """Loading processes beside one process that computes with so many cores: half of them with a
    GPU, else a quarter."""
    return max(1, min(16, cores // (2 if on_gpu else 4)))


def enough_workers(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """See `workers_for`."""
    count = workers_for(facts.cores // facts.local_processes, facts.device == "cuda")
    cores = f"{facts.cores} core{'s' * (facts.cores != 1)}"
    processes = f"{facts.local_processes} training process{'es' * (facts.local_processes != 1)}"
    return Choice(count, f"{cores} for {processes}")


def compiled(facts: Facts, values: Mapping[str, Any]) -> Choice:
    """What was measured: see `torchmae.train.speed.choose_compile`."""
    return facts.compile or Choice(False, "the training is short")


PRECISION = Rule("bf16 where the device is fast at it", best_precision)
WORKERS = Rule("by the cores", enough_workers)
COMPILE = Rule("on in long trainings that are measured to be faster with it", compiled)
