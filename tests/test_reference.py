"""The arithmetic of facebookresearch/mae, written anew from the paper and its description, against
ours: patches to gradients, groups, schedule, LARS, crops, initial values, positions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.models import masking
from torchmae.models.decoders import DecoderConfig
from torchmae.models.heads import Classifier
from torchmae.models.mae import MAE
from torchmae.models.patches import resize_positions, sincos_positions
from torchmae.models.vit import ViT
from torchmae.presets import PRESETS
from torchmae.train.optim import (
    init_optimizer_state,
    lars,
    lr_at,
    param_groups_layer_decay,
    param_groups_weight_decay,
    peak_lr,
)

Weights = dict[str, Tensor]
PATCH, SIDE, HEADS, DECODER_HEADS = 4, 5, 4, 2  # 25 patches of 4 px


def plain_name(name: str) -> str:
    """Our name of a parameter as the reference's."""
    name = name.removeprefix("encoder.")
    return name if name == "decoder.mask_token" else name.replace("decoder.", "decoder_", 1)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Away from zeros and ones, which hide mistakes; in float64."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double()


def patches_of(images: Tensor) -> Tensor:
    """[B, 25, 48]: row by row; within a patch row, column, channel."""
    cut = []
    for row in range(SIDE):
        for column in range(SIDE):
            rows = slice(row * PATCH, (row + 1) * PATCH)
            columns = slice(column * PATCH, (column + 1) * PATCH)
            cut.append(images[:, :, rows, columns].permute(0, 2, 3, 1).flatten(1))
    return torch.stack(cut, 1)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def block(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Pre-LN; each head has its share of the width, scaled by its root."""
    q, k, v = linear(w, f"{name}.attn.qkv", layer_norm(w, f"{name}.norm1", x)).chunk(3, -1)
    width, mixed = x.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        mixed.append(scores.softmax(-1) @ v[..., part])
    x = x + linear(w, f"{name}.attn.proj", torch.cat(mixed, -1))
    inner = linear(w, f"{name}.mlp.fc1", layer_norm(w, f"{name}.norm2", x))
    return x + linear(w, f"{name}.mlp.fc2", inner * (1 + torch.erf(inner / math.sqrt(2))) / 2)


def encode(w: Weights, images: Tensor, visible: Tensor | None, depth: int) -> Tensor:
    """All blocks on the class token and the visible patches; before the final norm."""
    kernel = w["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    x = patches_of(images) @ kernel.T + w["patch_embed.proj.bias"] + w["pos_embed"][:, 1:]
    if visible is not None:
        x = torch.stack([tokens[ids] for tokens, ids in zip(x, visible)])
    first = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x], 1)
    for i in range(depth):
        x = block(w, f"blocks.{i}", x, HEADS)
    return x


def pretraining_loss(
    w: Weights, images: Tensor, noise: Tensor, ratio: float, norm_pix: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the predictions of all patches in their places."""
    order = noise.argsort(1)
    back, count = order.argsort(1), int(noise.shape[1] * (1 - ratio))
    x = layer_norm(w, "norm", encode(w, images, order[:, :count], depth=2))
    x = linear(w, "decoder_embed", x)
    hidden = w["decoder.mask_token"].expand(len(x), noise.shape[1] - count, -1)
    shuffled = torch.cat([x[:, 1:], hidden], 1)
    patches = torch.stack([tokens[ids] for tokens, ids in zip(shuffled, back)])
    x = torch.cat([x[:, :1], patches], 1) + w["decoder_pos_embed"]
    for i in range(2):
        x = block(w, f"decoder_blocks.{i}", x, DECODER_HEADS)
    predicted = linear(w, "decoder_pred", layer_norm(w, "decoder_norm", x))[:, 1:]
    truth = patches_of(images)
    if norm_pix:
        mean = truth.mean(-1, keepdim=True)
        variance = (truth - mean).square().sum(-1, keepdim=True) / (truth.shape[-1] - 1)
        truth = (truth - mean) / (variance + 1e-6).sqrt()
    is_hidden = (back >= count).double()
    errors = (predicted - truth).square().mean(-1)
    return (errors * is_hidden).sum() / is_hidden.sum(), predicted


@pytest.mark.parametrize("target", ["pixels", "norm-pixels"])
@pytest.mark.parametrize("ratio", [0.75, 0.3, 0.9])
def test_from_patches_to_all_gradients(target: str, ratio: float) -> None:
    """In float64: loss, predictions, and the gradient of every parameter."""
    encoder = ViT((20, 20), PATCH, 3, embed_dim=32, depth=2, num_heads=HEADS)
    model = MAE(encoder, DecoderConfig("transformer", 16, 2, DECODER_HEADS), target=target)
    model = shaken(model)  # type: ignore[assignment]
    images = torch.randn(3, 3, 20, 20, dtype=torch.float64)
    noise = masking.noise(7, torch.zeros(3).long(), torch.arange(3), 25)
    mask = masking.random(noise, (SIDE, SIDE), ratio)
    ours = model(images, mask)
    ours.loss.backward()

    w = {plain_name(n): p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    loss, predicted = pretraining_loss(w, images, noise, ratio, target == "norm-pixels")
    loss.backward()
    assert abs(ours.loss.item() - loss.item()) < 1e-13
    expected = torch.stack([row[ids] for row, ids in zip(predicted, mask.hide)])
    torch.testing.assert_close(ours.prediction, expected, rtol=0, atol=1e-12)
    own = {"decoder.statistics.weight", "decoder.statistics.bias"}  # no part of the reference
    compared = 0
    for name, parameter in model.named_parameters():
        if name in own or name.endswith("pos_embed"):  # positions are fixed in pre-training
            assert parameter.grad is None or not parameter.grad.any()
            continue
        gradient = w[plain_name(name)].grad
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-13, msg=name)
        compared += 1
    assert compared == 4 * 12 + 3 + 1 + 2 * 2 + 2 * 2  # blocks; patches, class; mask; norms; rest


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_classifier_s_logits(pool: str) -> None:
    """Fine-tuning: the mean of the patches has a norm of its own. The probe: the class token after
    the encoder's norm, standardized without affine parameters."""
    encoder = ViT((20, 20), PATCH, 3, embed_dim=32, depth=2, num_heads=HEADS)
    model = Classifier(encoder, "abc", pool, batch_norm=pool == "cls")
    shaken(model)
    images = torch.randn(6, 3, 20, 20, dtype=torch.float64)
    w = {plain_name(n): p.detach() for n, p in model.named_parameters()}
    x = encode(w, images, None, depth=2)
    if pool == "mean":
        x = layer_norm(w, "fc_norm", x[:, 1:].mean(1))
    else:
        x = layer_norm(w, "norm", x)[:, 0]
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(model(images), linear(w, "head", x), rtol=0, atol=1e-11)


def test_positions_are_sines_and_cosines_of_column_then_row() -> None:
    rows, columns, dim = 3, 5, 24
    table = np.zeros((1 + rows * columns, dim))
    for row in range(rows):
        for column in range(columns):
            for i in range(dim // 4):
                speed = 1 / 10000 ** (i / (dim / 4))
                place = table[1 + row * columns + column]
                for start, coordinate in ((0, column), (dim // 2, row)):
                    place[start + i] = math.sin(coordinate * speed)
                    place[start + dim // 4 + i] = math.cos(coordinate * speed)
    found = sincos_positions((rows, columns), dim)[0].double().numpy()
    assert np.abs(found - table).max() < 1e-7


def cubic(distance: float) -> float:
    """Keys' convolution with a = -0.75."""
    x, a = abs(distance), -0.75
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def interpolation(old: int, new: int) -> np.ndarray:
    """[new, old]: pixel centres without aligned corners, the border repeated, no antialiasing."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(centre - j)
    return matrix


@pytest.mark.parametrize("new", [(28, 28), (24, 24), (7, 7), (10, 20)])
def test_positions_resized_by_the_reference_s_rule(new: tuple[int, int]) -> None:
    table = sincos_positions((14, 14), 32)
    grid = table[0, 1:].double().numpy().reshape(14, 14, 32)
    rows, columns = (interpolation(14, side) for side in new)
    expected = np.einsum("ih,jw,hwd->ijd", rows, columns, grid).reshape(-1, 32)
    found = resize_positions(table, (14, 14), new, "reference")[0].double().numpy()
    assert np.abs(found[1:] - expected).max() < 1e-5 and not found[0].any()


def every(groups: list[dict[str, object]], *keys: str) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for group in groups:
        for name in group["names"]:
            assert name not in found, f"{name} is in two groups"
            found[name] = tuple(group[key] for key in keys)
    return found


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("init_values, registers", [(None, 0), (1e-5, 2)])
def test_layer_decay_and_weight_decay_of_every_name_in_fine_tuning(
    pool: str, init_values: float | None, registers: int
) -> None:
    """Scale ld^(N + 1 - id): 0 for class token, positions and patches, block i is i + 1, the rest
    N + 1. Vectors, class token and positions do not decay."""
    encoder = ViT(
        (8, 8), 4, 3, 16, 12, 2, init_values=init_values, registers=registers
    ).requires_grad_(True)
    model = Classifier(encoder, "abc", pool)
    groups = param_groups_layer_decay(model, encoder.layers(), 0.05, 0.65)
    found = every(groups, "lr_scale", "weight_decay")
    expected = {}
    for ours, parameter in model.named_parameters():
        name = ours.removeprefix("encoder.")
        layer = 13
        if name in ("cls_token", "reg_token", "pos_embed") or name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        exempt = parameter.ndim == 1 or name in ("cls_token", "reg_token", "pos_embed")
        expected[ours] = (0.65 ** (13 - layer), 0.0 if exempt else 0.05)
    assert found == expected
    assert len(found) == 12 * (12 + 2 * (init_values is not None)) + 4 + (registers > 0) + 4


def test_weight_decay_of_every_name_in_pre_training() -> None:
    """Vectors do not decay; the class and the mask token do; positions are not trained."""
    model = MAE(ViT((8, 8), 4, 3, 16, 2, 2), DecoderConfig("transformer", 16, 2, 2))
    found = every(param_groups_weight_decay(model, 0.05), "weight_decay")
    parameters = dict(model.named_parameters())
    assert parameters.keys() - found.keys() == {"encoder.pos_embed", "decoder.pos_embed"}
    for name, (decay,) in found.items():
        assert decay == (0.0 if name.endswith(".bias") or "norm" in name else 0.05), name
    assert found["encoder.cls_token"] == found["decoder.mask_token"] == (0.05,)


@pytest.mark.parametrize(
    "verb, name",
    [("pretrain", "paper_base"), ("finetune", "finetune_base"), ("finetune", "probe_base")],
)
def test_the_learning_rate_at_twenty_points(verb: str, name: str) -> None:
    """A function of the epoch, whole and fraction, at which a step begins."""
    recipe = PRESETS[verb][name]()
    epochs, warmup, min_lr = recipe["epochs"], recipe["warmup_epochs"], recipe.get("min_lr", 0.0)
    each = 1_281_167 // recipe["batch_size"]
    peak = recipe["base_lr"] * recipe["batch_size"] / 256
    assert peak == pytest.approx(peak_lr(recipe["base_lr"], recipe["batch_size"]))
    steps, edge = epochs * each, warmup * each
    points = [0, 1, each - 1, each, edge // 2, edge - 1, edge, edge + 1, steps - 1]
    points += [round(steps * i / 12) for i in range(1, 12)]
    assert len(points) == 20
    for step in points:
        epoch = step // each + step % each / each
        if epoch < warmup:
            expected = peak * epoch / warmup
        else:
            share = (epoch - warmup) / (epochs - warmup)
            expected = min_lr + (peak - min_lr) * 0.5 * (1 + math.cos(math.pi * share))
        assert lr_at(step, steps, edge, peak, min_lr) == pytest.approx(
            expected, rel=1e-9, abs=1e-15
        )
    assert lr_at(0, steps, edge, peak, min_lr) == 0


def test_five_steps_of_lars() -> None:
    """Trust 0.001 and momentum 0.9; vectors have neither trust ratio nor decay."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).double()
    weights = [layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()]
    speeds = [np.zeros_like(w) for w in weights]
    optimizer = lars(param_groups_weight_decay(layer, 0.0), (0.9, 0.999))
    optimizer.state.update({p: init_optimizer_state("lars", p) for p in layer.parameters()})
    for step in range(5):
        lr = 0.3 * (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, parameter in enumerate(layer.parameters()):
            gradient = torch.randn_like(parameter)
            parameter.grad, change = gradient, gradient.numpy().copy()
            if parameter.ndim > 1:
                change *= 0.001 * np.linalg.norm(weights[i]) / np.linalg.norm(change)
            speeds[i] = 0.9 * speeds[i] + change
            weights[i] = weights[i] - lr * speeds[i]
        optimizer.step()
    for parameter, expected in zip(layer.parameters(), weights):
        assert np.abs(parameter.detach().numpy() - expected).max() < 1e-14


def reference_window(
    draw: np.random.Generator, height: int, width: int, scale: tuple[float, float], attempts: int
) -> tuple[int, int, int, int]:
    """Top, left, height, width. One attempt: what does not fit is cut to the image."""
    for _ in range(attempts):
        area = height * width * draw.uniform(*scale)
        aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if attempts == 1:
            w, h = min(w, width), min(h, height)
        if w <= width and h <= height:
            top, left = (int(draw.integers(0, room + 1)) for room in (height - h, width - w))
            return top, left, h, w
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov's statistic in units of its 0.1 % critical value: above 1 they differ."""
    grid = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max() / (1.95 * (1 / len(a) + 1 / len(b)) ** 0.5))


FIGURES = {
    "area": lambda x: x[:, 2] * x[:, 3],
    "aspect": lambda x: np.log(x[:, 3] / x[:, 2]),
    "top": lambda x: x[:, 0],
    "left": lambda x: x[:, 1],
}


@pytest.mark.parametrize("height, width", [(375, 500), (500, 375), (200, 600)])
def test_crops_are_distributed_as_the_reference_s(height: int, width: int) -> None:
    """Pre-training and fine-tuning: ten attempts, scale 0.2 or 0.08. The probe: one, clamped."""
    count = 3000
    heights, widths = np.full(count, height), np.full(count, width)
    found, draw = {}, np.random.default_rng(5)
    for clamp, low in ((False, 0.2), (False, 0.08), (True, 0.08)):
        crop = RandomResizedCropFlip((224, 224), 4, (low, 1.0), clamp=clamp)
        windows = crop.crops(heights, widths, np.zeros(count, int), np.arange(count))
        ours = np.array([window[:4] for window in windows], float)
        attempts = 1 if clamp else 10
        scale = (low, 1.0)
        theirs = np.array(
            [reference_window(draw, height, width, scale, attempts) for _ in range(count)], float
        )
        for what, figure in FIGURES.items():
            assert distance(figure(ours), figure(theirs)) < 1, (what, clamp, low)
        found[clamp, low] = ours
    # The measure tells the rules apart.
    assert distance(*(FIGURES["area"](found[clamp, 0.08]) for clamp in (False, True))) > 1


def test_initial_values_of_every_name() -> None:
    """Xavier-uniform matrices, the patches' as one; the patches' bias as torch's convolution;
    tokens normal with 0.02; norms 1 and 0; other biases 0; positions fixed."""
    torch.manual_seed(0)
    model = MAE(ViT((32, 32), 8, 3, 192, 2, 3), DecoderConfig("transformer", 128, 2, 4))
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name.startswith("decoder.statistics") or name.endswith("pos_embed"):
            continue  # ours alone, and tested above
        if name.endswith("_token"):
            assert value.std().item() == pytest.approx(0.02, rel=0.25), name
        elif "norm" in name:
            assert (value == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif value.ndim > 1 or name == "encoder.patch_embed.proj.bias":
            bound = (8 * 8 * 3) ** -0.5
            if value.ndim > 1:
                outputs, inputs = value.flatten(1).shape
                bound = math.sqrt(6 / (inputs + outputs))
            spread = 0.02 if value.ndim > 1 else 0.1
            assert (1 - spread / 2) * bound < value.abs().max() <= bound, name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=spread), name
            assert abs(value.mean().item()) < 4 * bound / math.sqrt(3 * value.numel()), name
        else:
            assert name.endswith("bias") and not value.any(), name
