"""An encoder whose last blocks learn which images are alike: nearest-neighbour contrast."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.models.encoders import Backbone, build_encoder

EMBEDDING = 128  # width of what is compared
HIDDEN = 4  # of the projector and the predictor, times the encoder's width, at most
WIDEST = 2048


class Contrast(nn.Module):
    """What nearest-neighbour contrast needs beside the encoder (NNCLR, Dwibedi et al. 2021): a
    projector, a predictor, and a queue of projections of earlier images.

    The papers have batch normalisation in both networks; layer normalisation does not depend on how
    a batch is split.

    Args:
        dim: width of pooled features.
        size: rows of the queue. Until they are filled they are random directions.
        temperature: of the softmax over the queue.
    """

    queue: Tensor
    place: Tensor

    def __init__(self, dim: int, size: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        wide = min(WIDEST, HIDDEN * dim)
        self.projector = network(dim, wide, EMBEDDING)
        self.predictor = network(EMBEDDING, wide, EMBEDDING)
        self.register_buffer("queue", F.normalize(torch.randn(size, EMBEDDING), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(
        self, first: Float[Tensor, "B D"], second: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B E"]]:
        """The loss of two views of each image, and the projections of the first.

        The nearest neighbour in the queue of one view's projection is what the prediction of the
        other view has to be nearer to than to all other rows. The others are those of the queue and
        not, as in the paper, those of the batch, so that the loss of an image does not depend on
        which others are in its batch, micro-batch or process.

        Args:
            first: pooled features of one view.
            second: of the other.
        """
        views = [F.normalize(self.projector(x).float(), dim=1) for x in (first, second)]
        nearest = [self.likeness(x.detach()).argmax(dim=1) for x in views]
        losses = [self.of_view(*pair) for pair in zip(views, reversed(nearest))]
        return torch.stack(losses).mean(), views[0].detach()

    def of_view(self, view: Float[Tensor, "B E"], wanted: Tensor) -> Float[Tensor, ""]:
        """Cross-entropy over the rows of the queue, in nats."""
        predicted = F.normalize(self.predictor(view).float(), dim=1)
        return F.cross_entropy(self.likeness(predicted) / self.temperature, wanted)

    def likeness(self, rows: Float[Tensor, "B E"]) -> Float[Tensor, "B Q"]:
        """Cosines with the rows of the queue, in float32: half precision has many equal ones."""
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ self.queue.T

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "B E"]) -> None:
        """Puts projections in place of the oldest rows; at most as many as there are."""
        count = len(rows)
        places = (self.place + torch.arange(count, device=rows.device)) % len(self.queue)
        self.queue.index_copy_(0, places, rows)
        self.place.copy_((self.place + count) % len(self.queue))


def network(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Two linear maps with a norm and a ReLU between them."""
    parts = (nn.Linear(dim, hidden, bias=False), nn.LayerNorm(hidden), nn.ReLU())
    return nn.Sequential(*parts, nn.Linear(hidden, out))


class Refined(nn.Module):
    """An encoder and its `Contrast`. Later verbs read the encoder alone.

    Args:
        encoder: any `Backbone`.
        queue: rows of the queue.
        temperature: of its softmax.
    """

    def __init__(self, encoder: Backbone, queue: int, temperature: float):
        super().__init__()
        self.encoder = encoder
        self.contrast = Contrast(encoder.embed_dim, queue, temperature)

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `build`."""
        about = {"queue": len(self.contrast.queue), "temperature": self.contrast.temperature}
        return {"encoder": self.encoder.config(), "contrast": about}

    @classmethod
    def build(cls, config: dict[str, Any]) -> "Refined":
        """The model that `config()` describes, with new weights."""
        return cls(build_encoder(config["encoder"]), **config["contrast"])

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The mean of the patch tokens of normalised images, as `mae knn` has it."""
        return self.encoder(images)[:, self.encoder.num_prefix_tokens :].mean(1)
