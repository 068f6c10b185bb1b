"""Real tasks small enough to reason about, and their batches."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from torchmae.data.loader import Batch

# What a sample does to the loss, by its "epoch". GRADIENT: a finite loss, an infinite gradient.
GOOD = 0
NAN = 1
INF = 2
GRADIENT = 3


class Regression(nn.Module):
    """Maps 12 pixels to 3 constants."""

    exclude_from_grad_norm: frozenset[str] = frozenset()

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))

    def layers(self):
        return [self.model[0]]

    def forward(self, batch):
        out = self.model(batch.images.flatten(1).float() / 255)
        loss = (out - torch.tensor([0.5, -1.0, 2.0])).square().mean(1)
        poison = torch.tensor([0.0, float("nan"), float("inf"), 0.0])[batch.epoch]
        loss = loss + poison
        if (batch.epoch == GRADIENT).any():
            loss = loss + (out[:, 0] - out[:, 0].detach()).abs().sqrt()
        return {"loss": loss.mean()}

    def diagnose(self, batch):
        return {}

    def after_step(self, step):
        pass


class SelfDistillation(nn.Module):
    """A student with BatchNorm learns from a teacher, which is the EMA of its weights."""

    exclude_from_grad_norm: frozenset[str] = frozenset()

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        student, teacher = (nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8)) for _ in range(2))
        self.model = nn.ModuleDict({"student": student, "teacher": teacher.requires_grad_(False)})

    def layers(self):
        return [self.model["student"]]

    def forward(self, batch):
        x = batch.images.flatten(1).float() / 255
        with torch.no_grad():
            truth = self.model["teacher"](x.flip(1))
        return {"loss": (self.model["student"](x) - truth - 1).square().mean()}

    def diagnose(self, batch):
        return {}

    def after_step(self, step):
        students = self.model["student"].parameters()
        for teacher, student in zip(self.model["teacher"].parameters(), students):
            teacher.lerp_(student, 0.1 / (1 + step))


def make_batch(count=12, kind=GOOD, seed=0):
    """`count` random images of 3 x 2 x 2 pixels, the middle one of this kind."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 2, 2), generator=generator, dtype=torch.uint8)
    epoch = torch.zeros(count, dtype=torch.long)
    epoch[count // 2] = kind
    return Batch(images, None, epoch, torch.arange(count))


class RandomBatches:
    """A stream whose batch is a function of the step; DataLoader draws its own seed from torch's.

    `broken_at` is a step whose batch cannot be made, as in a crash.
    """

    def __init__(self, batch_size=12, broken_at=None):
        self.batch_size = batch_size
        self.broken_at = broken_at
        self.made = []

    def __getitem__(self, step):
        if step == self.broken_at:
            raise KeyboardInterrupt
        self.made.append(step)
        return make_batch(self.batch_size, seed=step)

    def loader(self, start, stop, workers, pin_memory):
        return DataLoader(self, batch_size=None, sampler=range(start, stop), num_workers=workers)
