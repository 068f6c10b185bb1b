"""One step: accumulation, losses that are not finite, clipping, fp16, out of memory, state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tasks import GRADIENT, INF, NAN, Regression, make_batch

from torchmae.data.loader import Batch
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.masking import MaskGenerator
from torchmae.models.vit import ViT
from torchmae.tasks.pretrain.task import PretrainTask
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.optim import ema_decay_at
from torchmae.train.trainer import Trainer

TESTS = Path(__file__).parents[1]
WORLD = World(0, 1, torch.device("cpu"))


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
    return Trainer(task or Regression(), WORLD, plan)


def bits(trainer):
    """All that a step may change, as bytes."""
    weights, moments, _ = trainer.state()
    return {
        name: value.numpy().tobytes() for part in (weights, moments) for name, value in part.items()
    }


def test_accumulation_in_parts_gives_the_loss_and_gradients_of_the_whole():
    wholes = {}
    for count in (12, 8):  # 8 in 3 parts: 3, 3 and 2 images
        data = make_batch(count)
        for parts in (1, 2, 3):
            trainer = make()
            loss = trainer.accumulate(trainer.module, data, parts)
            gradients = [p.grad for p in trainer.parameters.values()]
            whole_loss, whole = wholes.setdefault(count, (loss, gradients))
            torch.testing.assert_close(loss, whole_loss)
            torch.testing.assert_close(gradients, whole)


def test_a_whole_step_in_parts_moves_the_weights_as_one_part():
    after = []
    for micro_batch_size in (None, 6, 5, 1):
        trainer = make(micro_batch_size=micro_batch_size)
        results = [trainer(make_batch(seed=i), 1e-2) for i in range(3)]
        assert trainer.micro_batch_size == -(-12 // -(-12 // (micro_batch_size or 12)))
        after.append((results, [p.detach() for p in trainer.parameters.values()]))
    for other in after[1:]:
        torch.testing.assert_close(other, after[0], rtol=1e-4, atol=1e-5)


def test_mae_in_parts_has_the_loss_and_gradients_of_the_whole():
    results = []
    for parts in (1, 2, 3):
        trainer = make(mae_task())
        loss = trainer.accumulate(trainer.module, pictures(8), parts)
        results.append((loss, {n: p.grad for n, p in trainer.parameters.items()}))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", [NAN, INF, GRADIENT])
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(kind, precision):
    trainer = make(precision=precision)
    trainer(make_batch(), 1e-2)
    before = bits(trainer)
    values = trainer(make_batch(kind=kind), 1e-2)
    assert not torch.isfinite(values.sum())
    assert bits(trainer) == before, "weights, moments or step counters moved"
    assert torch.isfinite(trainer(make_batch(seed=1), 1e-2)).all()
    after = bits(trainer)
    assert after != before
    if precision != "fp16":  # its scale has changed; else it is as if the step had never been
        other = make(precision=precision)
        other(make_batch(), 1e-2)
        other(make_batch(seed=1), 1e-2)
        assert bits(other) == after


def test_a_bad_micro_batch_spoils_the_whole_step():
    trainer = make(micro_batch_size=3)
    before = bits(trainer)
    assert not torch.isfinite(trainer(make_batch(kind=NAN), 1e-2)[0])
    assert bits(trainer) == before


def test_the_values_are_loss_and_norm():
    task = Regression()
    trainer = make(task)
    data = make_batch()
    loss, norm = trainer(data, 0.0)
    reference = Regression()
    value = reference(data)["loss"]
    value.backward()
    squares = sum(p.grad.double().square().sum() for p in reference.parameters())  # type: ignore[misc]
    torch.testing.assert_close(loss, value.detach())
    torch.testing.assert_close(norm, squares.sqrt().float())


def test_clipping_in_numbers():
    free, data = make(), make_batch()
    norm = free(data, 0.0)[1]
    gradients = {n: p.grad.clone() for n, p in free.parameters.items()}
    for limit in (float(norm) / 4, float(norm) * 4):
        trainer = make(clip_grad=limit)
        assert trainer(data, 0.0)[1] == norm, "the norm that is logged is the one before clipping"
        scale = min(1.0, limit / float(norm))
        for name, parameter in trainer.parameters.items():
            torch.testing.assert_close(
                parameter.grad, gradients[name] * scale, rtol=1e-4, atol=1e-8
            )
    clipped = torch.cat(
        [p.grad.flatten() for p in make_and_step(float(norm) / 4, data).parameters.values()]
    )
    assert float(clipped.norm()) == pytest.approx(float(norm) / 4, rel=1e-4)


def make_and_step(limit, data):
    trainer = make(clip_grad=limit)
    trainer(data, 0.0)
    return trainer


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
    return PretrainTask(model, MaskGenerator(), seed=0)


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
    trainer = make(precision="fp16")
    losses = [float(trainer(make_batch(seed=i), 1e-2)[0]) for i in range(3)]
    assert all(loss == loss and abs(loss) < 100 for loss in losses)
    assert all(float(trainer.optimizer.state[p]["step"]) == 3 for p in trainer.parameters.values())
    plain = make()
    assert losses[0] == pytest.approx(float(plain(make_batch(), 1e-2)[0]), rel=1e-2)
    scale = trainer.scaler.get_scale()
    trainer(make_batch(kind=INF), 1e-2)
    assert trainer.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_state_and_load_continue_identically(precision):
    whole, first, second = (make(precision=precision, micro_batch_size=5) for _ in range(3))
    for i in range(6):
        whole(make_batch(seed=i), 1e-2)
    for i in range(3):
        first(make_batch(seed=i), 1e-2)
    second = make(Regression(seed=9), precision=precision, micro_batch_size=5)
    assert bits(second) != bits(first)
    second.load(*first.state())
    assert bits(second) == bits(first)
    # What is requested now counts.
    assert first.micro_batch_size == 4 and second.micro_batch_size is None
    assert second.scaler.state_dict() == first.scaler.state_dict()
    for i in range(3, 6):
        second(make_batch(seed=i), 1e-2)
    assert bits(second) == bits(whole)


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from helpers.tasks import Regression, make_batch
from torchmae.cli import show_messages
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.trainer import Trainer

class Large(Regression):
    def __init__(self, width):
        super().__init__()
        self.model, self.width = nn.Linear(3, 1), width
    def layers(self):
        return []
    def forward(self, batch):  # 32 MB an image for each of the product, its square, their gradients
        x = batch.images.flatten(2).mean(2, dtype=torch.float32)
        x = self.model(x).expand(-1, self.width)
        return {"loss": (x * 1.5).square().mean()}

def make(width):
    plan = TrainConfig(9, 0, 1e-3, 0.0, (0.9, 0.95), None, "fp32")
    return Trainer(Large(width), World(0, 1, torch.device("cpu")), plan)

show_messages()
torch.set_num_threads(1)
make(1 << 10)(make_batch(1), 1e-3)  # threads and arenas are there
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
trainer = make(8 << 20)
losses = [float(trainer(make_batch(8), 1e-3)[0]) for _ in range(2)]
print("finished with", trainer.micro_batch_size, "at a time", losses)
"""


def out_of_memory(megabytes):
    """The script above in a process that may allocate so much more."""
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(megabytes)]
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_out_of_memory_halves_the_micro_batch_and_says_so():
    """A real one: the address space is limited so that 8 images do not fit and 2 do."""
    done = out_of_memory(300)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "out of memory" in line]
    assert said[0] == "out of memory: continuing with micro-batches of 4 images"
    micro_batch_size = int(done.stdout.partition("finished with ")[2].split()[0])
    assert micro_batch_size == 8 // 2 ** len(said) and 1 <= micro_batch_size < 8


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_out_of_memory_with_one_image_says_what_to_do():
    done = out_of_memory(40)
    assert done.returncode == 1
    assert (
        "RunError: out of memory even with one image at a time: choose a smaller --model"
        in done.stderr
    )


def test_what_is_not_out_of_memory_is_not_swallowed():
    class Broken(Regression):
        def forward(self, batch):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        make(Broken())(make_batch(), 1e-2)


def test_the_plan_reaches_the_optimizer():
    """Layer decay once did not reach the optimizer, and changed nothing at all."""
    trainer = make(layer_decay=0.5)
    before = [parameter.detach().clone() for parameter in trainer.parameters.values()]
    trainer(make_batch(), 1e-2)
    rates = {
        name: group["lr"] for group in trainer.optimizer.param_groups for name in group["names"]
    }
    assert (
        rates["0.weight"] == rates["0.bias"] == 0.5e-2
        and rates["3.weight"] == rates["1.bias"] == 1e-2
    )
    moved = [(a.detach() - b).abs().max() for a, b in zip(trainer.parameters.values(), before)]
    # The first step of Adam moves everything by its learning rate.
    for name, size in zip(trainer.parameters, moved):
        torch.testing.assert_close(size.item(), rates[name], rtol=0.1, atol=0)
    assert {group["lr"] for group in stepped().optimizer.param_groups} == {1e-2}


def stepped():
    trainer = make()
    trainer(make_batch(), 1e-2)
    return trainer


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_other_optimizers_skip_a_step_that_is_not_finite(optimizer):
    trainer = make(optimizer=optimizer)
    trainer(make_batch(), 1e-2)
    before = bits(trainer)
    trainer(make_batch(kind=NAN), 1e-2)
    assert bits(trainer) == before
    trainer(make_batch(seed=1), 1e-2)
    assert bits(trainer) != before


def test_the_ema_of_the_weights_by_brute_force_and_resumed():
    trainer = make(ema=0.9)
    expected = {name: parameter.detach().clone() for name, parameter in trainer.parameters.items()}
    halfway = None
    for i in range(8):
        if i == 5:
            halfway = trainer.state()
            halfway = [
                {name: value.clone() for name, value in part.items()} for part in halfway[:2]
            ] + [halfway[2]]
        decay = ema_decay_at(i, 0.9)
        trainer(make_batch(seed=i), 1e-2, decay)
        for name, parameter in trainer.parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    torch.testing.assert_close(trainer.ema, expected, rtol=1e-5, atol=1e-6)
    weights, optimizer_state, _ = trainer.state()
    for name, parameter in trainer.parameters.items():
        assert torch.equal(weights[name], trainer.ema[name]) and torch.equal(
            optimizer_state[f"raw.{name}"], parameter
        )
        assert not torch.equal(weights[name], parameter)
    with trainer.ema_weights():
        assert torch.equal(trainer.task.model[0].weight, weights["0.weight"])
    assert torch.equal(trainer.task.model[0].weight, optimizer_state["raw.0.weight"])

    other = make(Regression(seed=1), ema=0.9)
    other.load(*halfway)  # type: ignore[misc]
    for i in range(5, 8):
        other(make_batch(seed=i), 1e-2, ema_decay_at(i, 0.9))
    assert bits(other) == bits(trainer)
