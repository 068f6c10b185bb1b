"""What the tasks of dense prediction share: what may change, and the randomness of an encoder."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchmae.data.loader import Batch
from torchmae.hashing import DROP, uniform
from torchmae.models.encoders import Backbone
from torchmae.models.heads import with_last_blocks, without_encoder


class DenseTask(nn.Module):
    """A loss of a model with an `encoder`; only what `train` names is moved, the rest stays in eval
    mode.

    Args:
        model: has an `encoder`, which comes first.
        train: "all", "head" (everything but the encoder), "0.5" or a number of last blocks.
        drop_path: stochastic depth of the last block.
        seed: of all that is drawn.
    """

    exclude_from_grad_norm: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, train: str, drop_path: float, seed: int):
        super().__init__()
        self.model = model
        self.seed = seed
        encoder = self.encoder
        head = train == "head"
        self.trained = set(
            without_encoder(model) if head else with_last_blocks(model, encoder, train)
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        encoder.set_drop_path(drop_path)

    @property
    def encoder(self) -> Backbone:
        found: Backbone = self.model.encoder  # type: ignore[assignment]
        return found

    def layers(self) -> list[nn.Module]:
        return self.encoder.layers()

    def train(self, mode: bool = True) -> "DenseTask":
        super().train(mode)
        for name, module in self.encoder.named_modules():
            start = f"encoder.{name}." if name else "encoder."
            if not any(one.startswith(start) for one in self.trained):
                module.eval()
        return self

    def draws(self, batch: Batch) -> Float[Tensor, "B depth 2"]:
        """For stochastic depth: a function of (seed, epoch, sample), as all that is drawn."""
        return self.uniform(batch, 0, 2 * len(self.layers())).unflatten(1, (-1, 2))

    def uniform(self, batch: Batch, first: int, count: int) -> Float[Tensor, "B count"]:
        """Numbers in 0..1 for each image: draws `first` to `first + count - 1` of its stream."""
        places = torch.arange(first, first + count, device=batch.sample.device)
        keys = (x.unsqueeze(1) for x in (batch.epoch, batch.sample))
        return uniform(self.seed, DROP, *keys, places)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""
