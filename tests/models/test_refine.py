"""Nearest-neighbour contrast: the loss against loops, the queue against a list."""

import torch
import torch.nn.functional as F
from helpers.mae import tiny

from torchmae.models.refine import Contrast, Refined


def test_the_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    contrast = Contrast(16, 20, 0.2)
    first, second = torch.randn(2, 5, 16)
    loss, rows = contrast(first, second)
    losses = []
    for a, b in ((first, second), (second, first)):
        for one, other in zip(a, b):
            mine = F.normalize(contrast.projector(one[None]), dim=1)[0]
            theirs = F.normalize(contrast.projector(other[None]), dim=1)[0]
            likeness = [float(mine @ row) for row in contrast.queue]
            wanted = likeness.index(max(likeness))
            guess = F.normalize(contrast.predictor(theirs[None]), dim=1)[0]
            scores = torch.stack([guess @ row for row in contrast.queue]) / 0.2
            losses.append(scores.exp().sum().log() - scores[wanted])
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)
    assert rows.shape == (5, 128) and not rows.requires_grad


def test_the_queue_keeps_the_newest_and_an_image_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = Refined(tiny().encoder, 7, 0.1)
    contrast, kept = model.contrast, list(model.contrast.queue)
    for count in (3, 3, 3, 7, 1):
        rows = F.normalize(torch.randn(count, 128), dim=1)
        contrast.push(rows)
        kept = [*kept, *rows][-7:]
        place = int(contrast.place)
        assert torch.equal(contrast.queue.roll(-place, 0), torch.stack(kept))
    first, second = torch.randn(2, 6, 32)
    parts = [contrast(first[i : i + 2], second[i : i + 2])[0] for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), contrast(first, second)[0])
    again = Refined.build(model.config())
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.features(images), model.features(images))
