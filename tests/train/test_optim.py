"""Which parameters decay, the schedules in numbers, and the optimizers against torch's own."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.vit import ViT
from torchmae.train.config import SCHEDULES, TrainConfig
from torchmae.train.optim import (
    SHARES,
    adamw,
    can_lengthen,
    decay_start,
    ema_decay_at,
    init_optimizer_state,
    lars,
    lr_at,
    param_groups_weight_decay,
    peak_lr,
    sgd,
    trunk,
)

BLOCK_DECAYED = ["attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"]
BLOCK_PLAIN = [
    *("norm1.weight", "norm1.bias", "attn.qkv.bias", "attn.proj.bias"),
    *("norm2.weight", "norm2.bias", "mlp.fc1.bias", "mlp.fc2.bias"),
]
DECAYED = {
    *("encoder.cls_token", "encoder.patch_embed.proj.weight"),
    *(f"encoder.blocks.0.{name}" for name in BLOCK_DECAYED),
    *(
        "decoder.mask_token",
        "decoder.embed.weight",
        "decoder.pred.weight",
        "decoder.statistics.weight",
    ),
    *(f"decoder.blocks.0.{name}" for name in BLOCK_DECAYED),
}
PLAIN = {
    *("encoder.patch_embed.proj.bias", "encoder.norm.weight", "encoder.norm.bias"),
    *(f"encoder.blocks.0.{name}" for name in BLOCK_PLAIN),
    *(
        "decoder.embed.bias",
        "decoder.norm.weight",
        "decoder.norm.bias",
        "decoder.pred.bias",
        "decoder.statistics.bias",
    ),
    *(f"decoder.blocks.0.{name}" for name in BLOCK_PLAIN),
}
FROZEN = {"encoder.pos_embed", "decoder.pos_embed"}


def tiny():
    return MAE(
        ViT((16, 16), 8, 3, embed_dim=32, depth=1, num_heads=2),
        DecoderConfig("transformer", 16, 1, 2),
    )


def test_every_parameter_is_in_the_group_of_the_table():
    model = tiny()
    decayed, plain = param_groups_weight_decay(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert set(decayed["names"]) == DECAYED
    assert set(plain["names"]) == PLAIN
    assert {n for n, _ in model.named_parameters()} == DECAYED | PLAIN | FROZEN
    names = decayed["names"] + plain["names"]
    parameters = dict(model.named_parameters())
    assert len(names) == len(set(names)), "a parameter is in two groups"
    assert all(
        parameters[n] is p for g in (decayed, plain) for n, p in zip(g["names"], g["params"])
    )
    assert all(p.ndim == 1 for p in plain["params"]) and all(p.ndim > 1 for p in decayed["params"])


def test_a_group_without_members_is_dropped():
    assert [g["names"] for g in param_groups_weight_decay(nn.Linear(2, 2, bias=False), 0.1)] == [
        ["weight"]
    ]
    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert param_groups_weight_decay(frozen, 0.1) == []


def test_the_learning_rate_rule_in_numbers():
    assert peak_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)  # the paper's pre-training, not /4096
    assert peak_lr(1e-3, 256) == 1e-3
    assert peak_lr(1e-3, 8) == pytest.approx(3.125e-5)


def test_the_schedule_in_numbers():
    steps, warmup, peak = 110, 10, 2.0
    assert lr_at(0, steps, warmup, peak) == 0.0  # as in the reference
    assert lr_at(5, steps, warmup, peak) == pytest.approx(1.0)
    assert lr_at(9, steps, warmup, peak) == pytest.approx(1.8)  # the last step of the warm-up
    assert lr_at(10, steps, warmup, peak) == pytest.approx(2.0)  # the first of the cosine
    assert lr_at(35, steps, warmup, peak) == pytest.approx(1 + math.sqrt(0.5))
    assert lr_at(60, steps, warmup, peak) == pytest.approx(1.0)
    assert 0 < lr_at(109, steps, warmup, peak) < 0.001
    assert lr_at(110, steps, warmup, peak) == pytest.approx(0.0, abs=1e-12)
    assert lr_at(60, steps, warmup, peak, min_lr=0.5) == pytest.approx(1.25)
    assert lr_at(110, steps, warmup, peak, min_lr=0.5) == pytest.approx(0.5)


def test_the_schedule_rises_then_falls_and_has_no_edge_cases():
    rates = [lr_at(step, 50, 7, 1.0) for step in range(50)]
    assert rates[:8] == sorted(rates[:8]) and rates[7:] == sorted(rates[7:], reverse=True)
    assert rates[0] == 0 and all(0 < rate <= 1 for rate in rates[1:])
    assert lr_at(0, 5, 0, 1.0) == 1.0 and lr_at(0, 1, 0, 1.0) == 1.0  # no warm-up
    assert lr_at(4, 5, 5, 1.0) == 0.8  # nothing but warm-up


def test_fused_adamw_equals_torchs_plain_adamw():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))
    theirs = copy.deepcopy(ours)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=False,
        foreach=False,
    )
    fused = adamw(param_groups_weight_decay(ours, 0.05), (0.9, 0.95))
    for step in range(8):
        data = torch.randn(4, 6)
        for model, optimizer in ((ours, fused), (theirs, plain)):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, 8, 2, 1e-2)
            optimizer.zero_grad()
            model(data).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def train(optimizer, model, steps=6):
    torch.manual_seed(1)
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()


def two_alike():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    return ours, copy.deepcopy(ours)


def test_sgd_equals_torchs_plain_sgd():
    ours, theirs = two_alike()
    fused = sgd(param_groups_weight_decay(ours, 0.0), (0.9, 0.999))
    fused.state.update({p: init_optimizer_state("sgd", p) for p in ours.parameters()})
    train(fused, ours)
    train(torch.optim.SGD(theirs.parameters(), lr=0.0, momentum=0.9, foreach=False), theirs)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_by_hand(weight_decay):
    """By the formulas of You et al. 2017: trust ratio for matrices, plain momentum for vectors."""
    ours, theirs = two_alike()
    ours, theirs = ours.double(), theirs.double()
    optimizer = lars(param_groups_weight_decay(ours, weight_decay), (0.9, 0.999))
    optimizer.state.update({p: init_optimizer_state("lars", p) for p in ours.parameters()})
    speeds = [torch.zeros_like(p) for p in theirs.parameters()]
    torch.manual_seed(1)
    for _ in range(6):
        data = torch.randn(4, 6, dtype=torch.float64)
        for model in (ours, theirs):
            model.zero_grad()
            model(data).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        optimizer.step()
        with torch.no_grad():
            for p, speed in zip(theirs.parameters(), speeds):
                g = p.grad + (weight_decay * p if p.ndim > 1 else 0)
                if p.ndim > 1:
                    g = g * 0.001 * math.sqrt((p**2).sum()) / math.sqrt((g**2).sum())
                speed.mul_(0.9).add_(g)
                p -= 0.5 * speed
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    # All-zero weights have no norm: the gradient is taken as it is.
    zero = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(zero.weight)
    optimizer = lars(param_groups_weight_decay(zero, 0.0), (0.9, 0.999))
    optimizer.state[zero.weight] = init_optimizer_state("lars", zero.weight)
    optimizer.param_groups[0]["lr"] = 1.0
    zero.weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(zero.weight, -torch.ones(2, 2))


def test_the_ema_forgets_the_start():
    assert ema_decay_at(0, None) == 0.0
    assert ema_decay_at(0, 0.9999) == 0.1
    assert ema_decay_at(90, 0.9999) == 0.91
    assert ema_decay_at(10**6, 0.9999) == 0.9999
    assert ema_decay_at(50, 0.5) == 0.5


@pytest.mark.parametrize("min_lr", [0.0, 0.5, 2.0])
def test_what_can_be_lengthened_has_the_learning_rates_of_a_longer_run(min_lr):
    warmup, peak = 4, 2.0
    for done in range(1, 12):
        plan = TrainConfig(done, warmup, peak, 0.0, (0.9, 0.95), None, "fp32", min_lr=min_lr)
        ours = [lr_at(step, done, warmup, peak, min_lr) for step in range(done)]
        theirs = [lr_at(step, 2 * done, warmup, peak, min_lr) for step in range(done)]
        # A cosine's first step is at the peak whatever its length.
        assert can_lengthen(plan, done) == (ours == theirs) or done == warmup + 1
    assert can_lengthen(plan, warmup) and can_lengthen(plan, 11) == (min_lr == peak)


def test_the_wsd_schedule_of_every_step_in_numbers():
    """20 steps, 4 of warm-up, the last 4 fall by 1 - sqrt."""
    rates = [lr_at(step, 20, 4, 2.0, schedule="wsd") for step in range(20)]
    assert rates[:17] == [0.0, 0.5, 1.0, 1.5, *[2.0] * 13]  # the first of the decay too
    falling = [2 * (1 - math.sqrt(done)) for done in (0.25, 0.5, 0.75)]
    assert rates[17:] == pytest.approx(falling)
    assert lr_at(20, 20, 4, 2.0, schedule="wsd") == 0
    assert lr_at(20, 20, 4, 2.0, 0.5, "wsd") == 0.5
    assert lr_at(18, 20, 4, 2.0, 0.5, "wsd") == pytest.approx(0.5 + 1.5 * (1 - math.sqrt(0.5)))
    assert set(SHARES) == set(SCHEDULES)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_trunk_of_wsd_is_the_beginning_of_every_longer_training(steps, more, at):
    plan = TrainConfig(steps, steps // 10, 2.0, 0.0, (0.9, 0.95), None, "fp32", schedule="wsd")
    longer = steps + more
    stable = trunk(plan)
    assert stable == decay_start(steps) <= decay_start(longer) and stable >= 0.8 * steps - 0.5
    step = at % stable if stable else 0
    same = [lr_at(step, n, steps // 10, 2.0, schedule="wsd") for n in (steps, longer)]
    assert same[0] == same[1] or not stable
    assert can_lengthen(plan, stable) and (stable == steps or not can_lengthen(plan, stable + 1))
