"""One step: accumulation, losses that are not finite, clipping, the scaler, memory that does not suffice, state."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from torchmae.data.loader import Batch
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.vit import ViT
from torchmae.tasks.pretrain.task import PretrainTask
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.optim import ema_decay_at
from torchmae.train.trainer import Trainer

WORLD = World(0, 1, torch.device("cpu"))
GOOD, NAN, INF, GRADIENT = 0, 1, 2, 3  # what a batch does to the loss of `Small`, by its "epoch"


class Small(nn.Module):
    """A real task, small enough to reason about; `epoch` says what kind of loss a sample has."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
        self.exclude_from_grad_norm = frozenset()

    def layers(self):
        return [self.model[0]]

    def forward(self, batch):
        out = self.model(batch.images.flatten(1).float() / 255)
        loss = (out - torch.tensor([0.5, -1.0, 2.0])).square().mean(1)
        poison = torch.tensor([0.0, float("nan"), float("inf"), 0.0])[batch.epoch]
        loss = loss + poison
        if (batch.epoch == GRADIENT).any():  # a finite loss whose gradient is infinite
            loss = loss + (out[:, 0] - out[:, 0].detach()).abs().sqrt()
        return {"loss": loss.mean()}


def batch(count=12, kind=GOOD, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 2, 2), generator=generator, dtype=torch.uint8)
    return (
        Batch(images, None, torch.zeros(count, dtype=torch.long), torch.arange(count))
        if kind == GOOD
        else spoil(
            Batch(images, None, torch.zeros(count, dtype=torch.long), torch.arange(count)), kind
        )
    )


def spoil(good, kind):
    epoch = good.epoch.clone()
    epoch[len(epoch) // 2] = kind  # one sample of many
    return good._replace(epoch=epoch)


def make(task=None, clip_grad=None, precision="fp32", micro_batch_size=None, **more):
    plan = TrainConfig(
        100,
        0,
        1e-3,
        0.05,
        (0.9, 0.95),
        clip_grad,
        precision,
        micro_batch_size=micro_batch_size,
        **more,
    )
    return Trainer(task or Small(), WORLD, plan)


def bits(step):
    """All that a step may change, as bytes."""
    weights, moments, _ = step.state()
    return {
        name: value.numpy().tobytes() for part in (weights, moments) for name, value in part.items()
    }


def test_accumulation_in_parts_gives_the_loss_and_gradients_of_the_whole():
    wholes = {}
    for count in (12, 8):  # 8 in 3 parts: 3, 3 and 2 images
        data = batch(count)
        for parts in (1, 2, 3):
            step = make()
            loss = step.accumulate(step.module, data, parts)
            gradients = [p.grad for p in step.parameters.values()]
            whole_loss, whole = wholes.setdefault(count, (loss, gradients))
            torch.testing.assert_close(loss, whole_loss)
            torch.testing.assert_close(gradients, whole)


def test_a_whole_step_in_parts_moves_the_weights_as_one_part():
    after = []
    for micro_batch_size in (None, 6, 5, 1):
        step = make(micro_batch_size=micro_batch_size)
        results = [step(batch(seed=i), 1e-2) for i in range(3)]
        assert step.micro_batch_size == -(-12 // -(-12 // (micro_batch_size or 12)))
        after.append((results, [p.detach() for p in step.parameters.values()]))
    for other in after[1:]:
        torch.testing.assert_close(other, after[0], rtol=1e-4, atol=1e-5)


def test_mae_in_parts_has_the_loss_and_gradients_of_the_whole():
    results = []
    for parts in (1, 2, 3):
        step = make(mae_task())
        loss = step.accumulate(step.module, pictures(8), parts)
        results.append((loss, {n: p.grad for n, p in step.parameters.items()}))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", [NAN, INF, GRADIENT])
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(kind, precision):
    step = make(precision=precision)
    step(batch(), 1e-2)
    before = bits(step)
    values = step(batch(kind=kind), 1e-2)
    assert not torch.isfinite(values.sum())
    assert bits(step) == before, "weights, moments or step counters moved"
    assert torch.isfinite(step(batch(seed=1), 1e-2)).all()
    after = bits(step)
    assert after != before
    if precision != "fp16":  # (its scale has changed) the run goes on as if the step had never been
        other = make(precision=precision)
        other(batch(), 1e-2)
        other(batch(seed=1), 1e-2)
        assert bits(other) == after


def test_a_bad_micro_batch_spoils_the_whole_step():
    step = make(micro_batch_size=3)
    before = bits(step)
    assert not torch.isfinite(step(batch(kind=NAN), 1e-2)[0])
    assert bits(step) == before


def test_the_values_are_loss_and_norm():
    task = Small()
    step, data = make(task), batch()
    loss, norm = step(data, 0.0)
    reference = Small()
    value = reference(data)["loss"]
    value.backward()
    squares = sum(p.grad.double().square().sum() for p in reference.parameters())
    torch.testing.assert_close(loss, value.detach())
    torch.testing.assert_close(norm, squares.sqrt().float())


def test_clipping_in_numbers():
    free, data = make(), batch()
    norm = free(data, 0.0)[1]
    gradients = {n: p.grad.clone() for n, p in free.parameters.items()}
    for limit in (float(norm) / 4, float(norm) * 4):
        step = make(clip_grad=limit)
        assert step(data, 0.0)[1] == norm, "the norm that is logged is the one before clipping"
        scale = min(1.0, limit / float(norm))
        for name, parameter in step.parameters.items():
            torch.testing.assert_close(
                parameter.grad, gradients[name] * scale, rtol=1e-4, atol=1e-8
            )
    clipped = torch.cat(
        [p.grad.flatten() for p in make_and_step(float(norm) / 4, data).parameters.values()]
    )
    assert float(clipped.norm()) == pytest.approx(float(norm) / 4, rel=1e-4)


def make_and_step(limit, data):
    step = make(clip_grad=limit)
    step(data, 0.0)
    return step


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(images, None, torch.zeros(count, dtype=torch.long), torch.arange(count))


def mae_task(head=True):
    torch.manual_seed(0)
    model = MAE(
        ViT((16, 16), 4, 3, embed_dim=32, depth=1, num_heads=2),
        DecoderConfig("transformer", 32, 1, 2),
    )
    if not head:
        model.decoder.statistics = None
    return PretrainTask(model, "random", 0.75, seed=0)


@pytest.mark.parametrize("clip_grad", [None, 0.05])
def test_the_statistics_head_does_not_touch_the_training_of_anything_else(clip_grad):
    with_head, without = make(mae_task(), clip_grad), make(mae_task(head=False), clip_grad)
    for i in range(5):
        left, right = with_head(pictures(8, i), 1e-2), without(pictures(8, i), 1e-2)
        assert torch.equal(left, right), "the head shows in the logged loss or norm"
    ours, theirs = bits(with_head), bits(without)
    assert {name for name in ours if name not in theirs} == {
        f"{kind}decoder.statistics.{part}"
        for kind in ("", "step.", "exp_avg.", "exp_avg_sq.")
        for part in ("weight", "bias")
    }
    assert all(ours[name] == theirs[name] for name in theirs)
    assert with_head.task.model.decoder.statistics.weight.abs().sum().item() > 0, (
        "the head itself must learn"
    )


def test_float16_with_its_scaler_takes_steps_and_halves_its_scale_on_overflow():
    step = make(precision="fp16")
    losses = [float(step(batch(seed=i), 1e-2)[0]) for i in range(3)]
    assert all(loss == loss and abs(loss) < 100 for loss in losses)
    assert all(float(step.optimizer.state[p]["step"]) == 3 for p in step.parameters.values())
    plain = make()
    assert losses[0] == pytest.approx(float(plain(batch(), 1e-2)[0]), rel=1e-2)
    scale = step.scaler.get_scale()
    step(batch(kind=INF), 1e-2)
    assert step.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_state_and_load_continue_identically(precision):
    whole, first, second = (make(precision=precision, micro_batch_size=5) for _ in range(3))
    for i in range(6):
        whole(batch(seed=i), 1e-2)
    for i in range(3):
        first(batch(seed=i), 1e-2)
    second = make(Small(seed=9), precision=precision, micro_batch_size=5)
    assert bits(second) != bits(first)
    second.load(*first.state())
    assert bits(second) == bits(first)
    assert first.micro == 4 and second.micro is None  # what is asked for now counts
    assert second.scaler.state_dict() == first.scaler.state_dict()
    for i in range(3, 6):
        second(batch(seed=i), 1e-2)
    assert bits(second) == bits(whole)


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from torchmae.data.loader import Batch
from torchmae.train.distributed import World
from torchmae.train.optim import ema_at
from torchmae.train.step import Plan, Step

class Large(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.model, self.aside, self.width = nn.Linear(3, 1), frozenset(), width
    def layers(self):
        return []
    def forward(self, batch):  # 32 MB an image for each of the product, its square and their gradients
        x = batch.images.flatten(2).mean(2, dtype=torch.float32)
        x = self.model(x).expand(-1, self.width)
        return {"loss": (x * 1.5).square().mean()}

def batch(count):
    images = torch.randint(0, 256, (count, 3, 2, 2), dtype=torch.uint8)
    return Batch(images, None, torch.zeros(count, dtype=torch.long), torch.arange(count))

def make(width):
    return Step(Large(width), World(0, 1, torch.device("cpu")), Plan(9, 0, 1e-3, 0.0, (0.9, 0.95), None, "fp32"))

torch.set_num_threads(1)
make(1 << 10)(batch(1), 1e-3)  # threads and arenas are there
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
step = make(8 << 20)
losses = [float(step(batch(8), 1e-3)[0]) for _ in range(2)]
print("finished with", step.micro, "at a time", losses)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_out_of_memory_halves_the_micro_batch_and_says_so():
    """A real one: the address space is limited so that 8 images do not fit and 2 do."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, "300"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "out of memory" in line]
    assert said[0] == "out of memory: going on with micro-batches of 4 images"
    micro_batch_size = int(done.stdout.partition("finished with ")[2].split()[0])
    assert micro_batch_size == 8 // 2 ** len(said) and 1 <= micro_batch_size < 8


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_out_of_memory_with_one_image_is_an_error_with_a_mend():
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, "40"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 1
    assert (
        "RunError: out of memory even with one image at a time: choose a smaller --model"
        in done.stderr
    )


def test_what_is_not_out_of_memory_is_not_swallowed():
    class Broken(Small):
        def forward(self, batch):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        make(Broken())(batch(), 1e-2)


def test_the_plan_reaches_the_optimizer():
    """Layer decay, once forgotten on the way from the plan to the optimizer, where it changed nothing at all."""
    step = make(layer_decay=0.5)
    before = [parameter.detach().clone() for parameter in step.parameters.values()]
    step(batch(), 1e-2)
    rates = {name: group["lr"] for group in step.optimizer.param_groups for name in group["names"]}
    assert (
        rates["0.weight"] == rates["0.bias"] == 0.5e-2
        and rates["3.weight"] == rates["1.bias"] == 1e-2
    )
    moved = [(a.detach() - b).abs().max() for a, b in zip(step.parameters.values(), before)]
    for name, size in zip(
        step.parameters, moved
    ):  # the first step of Adam moves everything by its learning rate
        torch.testing.assert_close(size.item(), rates[name], rtol=0.1, atol=0)
    assert {group["lr"] for group in stepped().optimizer.param_groups} == {1e-2}


def stepped():
    step = make()
    step(batch(), 1e-2)
    return step


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_other_optimizers_leave_out_a_step_that_is_not_finite(optimizer):
    step = make(optimizer=optimizer)
    step(batch(), 1e-2)
    before = bits(step)
    step(batch(kind=NAN), 1e-2)
    assert bits(step) == before
    step(batch(seed=1), 1e-2)
    assert bits(step) != before


def test_the_average_of_the_weights_by_brute_force_and_taken_up_again():
    step = make(ema=0.9)
    expected = {name: parameter.detach().clone() for name, parameter in step.parameters.items()}
    halfway = None
    for i in range(8):
        if i == 5:
            halfway = step.state()
            halfway = [
                {name: value.clone() for name, value in part.items()} for part in halfway[:2]
            ] + [halfway[2]]
        decay = ema_decay_at(i, 0.9)
        step(batch(seed=i), 1e-2, decay)
        for name, parameter in step.parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    torch.testing.assert_close(step.ema, expected, rtol=1e-5, atol=1e-6)
    weights, optimizer_state, _ = step.state()
    for name, parameter in step.parameters.items():
        assert torch.equal(weights[name], step.ema[name]) and torch.equal(
            optimizer_state[f"raw.{name}"], parameter
        )
        assert not torch.equal(weights[name], parameter)
    with step.ema_weights():
        assert torch.equal(step.task.model[0].weight, weights["0.weight"])
    assert torch.equal(step.task.model[0].weight, optimizer_state["raw.0.weight"])

    other = make(Small(seed=1), ema=0.9)
    other.load(*halfway)
    for i in range(5, 8):
        other(batch(seed=i), 1e-2, ema_decay_at(i, 0.9))
    assert bits(other) == bits(step)
