"""A discrete variational autoencoder: an image to one token a patch, tokens to an image.

As the tokenizer of DALL-E and BEiT (Ramesh et al. 2021, section 2.1; Bao et al. 2021, section 2.1),
but small: 1 to 3 M parameters. While it is trained, the choice of a token is relaxed by the
Gumbel-softmax (Jang et al. 2017); afterwards the token is the likeliest one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchmae.errors import UserError
from torchmae.hashing import GUMBEL, uniform
from torchmae.models.patches import Size, as_size, denormalize, grid_of, normalize
from torchmae.scaling import Scaling, scaling_of

DIM = 128  # channels at one position a patch
FINE_DIM = 64  # channels at finer resolutions
LOGIT_STD = 2.0  # of the logits before training


@dataclass(frozen=True)
class TokenizerConfig:
    """What a `Tokenizer` is built from.

    Attributes:
        patch_size: side of a patch in pixels, a power of two of at least 2.
        vocabulary: how many tokens there are.
        image_size: height and width it is trained at; it takes any multiple of the patch size.
        mean, std: one value for each channel, for pixels in 0..1; what `normalize` uses.
        floats: images are not of 8 bits, and mean and std those of their values.
        scaling: of floats, what is done with values before that, as `Scaling.config` says it; None:
            nothing.
    """

    patch_size: int
    vocabulary: int
    image_size: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    floats: bool = False
    scaling: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not is_power_of_two(self.patch_size):
            raise UserError(
                f"patch size {self.patch_size} of a tokenizer: a power of two is needed (2, 4, 8, "
                "16, ...), because each of its layers halves the image"
            )
        if self.vocabulary < 2:
            raise UserError(f"vocabulary {self.vocabulary} of a tokenizer: at least 2 tokens")
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise UserError(
                f"mean {self.mean} and std {self.std} of a tokenizer: one value for each channel, "
                "and std above 0"
            )
        grid_of(tuple(self.image_size), as_size(self.patch_size))


def is_power_of_two(side: int) -> bool:
    """Whether a tokenizer can have patches of this side."""
    return side >= 2 and side & (side - 1) == 0


class Block(nn.Module):
    """A residual block: a 3x3 and a 1x1 convolution, each after a ReLU."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.checkpointed = False  # while training, recompute activations in the backward pass

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        if self.checkpointed and self.training:
            return checkpoint(self.compute, x, use_reentrant=False)
        return self.compute(x)

    def compute(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x + self.proj(F.relu(self.conv(F.relu(x))))


class Relaxed(NamedTuple):
    """What one training pass of `Tokenizer` returns: the images again, and the logits."""

    reconstruction: Float[Tensor, "B C H W"]
    logits: Float[Tensor, "B N V"]


class Tokenizer(nn.Module):
    """The discrete VAE: convolutions that halve the image, a codebook, convolutions that double it.

    Nothing is normalised over places: a token depends on the pixels around its patch and on nothing
    else, so that images of another size have the same tokens.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.patch: Size = as_size(config.patch_size)
        self.channels = len(config.mean)
        statistics = torch.tensor([config.mean, config.std]).view(2, -1, 1, 1)
        self.pixel_statistics: Tensor
        self.register_buffer("pixel_statistics", statistics, persistent=False)
        self.scaling: Scaling | None = None
        if config.floats:
            self.scaling = scaling_of(config.scaling or Scaling(), self.channels)
        ends = [self.scaling.low, self.scaling.high] if self.scaling else [(), ()]
        self.pixel_window: Tensor
        window = torch.tensor(ends).view(2, -1, 1, 1)
        self.register_buffer("pixel_window", window, persistent=False)
        halvings = config.patch_size.bit_length() - 1
        dims = [*[FINE_DIM] * (halvings - 1), DIM]  # after each halving
        layers: list[nn.Module] = []
        for before, dim in zip([self.channels, *dims], dims):
            layers += [nn.Conv2d(before, dim, 4, stride=2, padding=1), Block(dim)]
        self.encoder = nn.Sequential(*layers, Block(DIM))
        self.norm = nn.LayerNorm(DIM)  # over the channels of one position
        self.head = nn.Linear(DIM, config.vocabulary)
        # Patches that differ have different likely tokens from the start. With torch's small
        # initial logits all are alike, and a few win (CIFAR-10, after 100 steps: error 0.51 in
        # place of 0.25, perplexity 5.6 in place of 7.5).
        nn.init.normal_(self.head.weight, std=LOGIT_STD / DIM**0.5)
        self.codebook = nn.Embedding(config.vocabulary, DIM)
        layers = [Block(DIM)]
        for dim, after in zip(dims[::-1], [*dims[::-1][1:], self.channels]):
            double = nn.Conv2d(dim, 4 * after, 3, padding=1)
            layers += [Block(dim), nn.ReLU(), double, nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*layers)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B N V"],
        temperature: float,
    ) -> Relaxed:
        """A training pass.

        Args:
            images: normalised.
            noise: Gumbel noise (see `gumbel`).
            temperature: above 0; near 0 a single code is chosen.
        """
        logits = self.logits(images)
        codes = relax(logits, noise, temperature) @ self.codebook.weight
        return Relaxed(self.draw(codes, self.grid(images)).float(), logits)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N V"]:
        """The logits of each patch's token, in the precision of the images."""
        features = self.norm(self.encoder(images).flatten(2).transpose(1, 2))
        return self.head(features).to(images.dtype)

    def tokens(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        """The likeliest token of each patch, row by row, of normalised images."""
        return self.logits(images).argmax(dim=2)

    def reconstruct(self, tokens: Int64[Tensor, "B N"], grid: Size) -> Float[Tensor, "B C H W"]:
        """The normalised images that tokens stand for."""
        return self.draw(self.codebook(tokens), grid).float()

    def draw(self, codes: Float[Tensor, "B N D"], grid: Size) -> Float[Tensor, "B C H W"]:
        return self.decoder(codes.transpose(1, 2).unflatten(2, grid))

    def grid(self, images: Float[Tensor, "B C H W"]) -> Size:
        """Patches down and across."""
        return grid_of(tuple(images.shape[2:]), self.patch)

    def flops(self, grid: Size) -> int:
        """Floating-point operations of `logits` for one image of so many patches."""
        places, count = math.prod(grid) * math.prod(self.patch), 0
        for layer in self.encoder.modules():  # in the order in which they compute
            if isinstance(layer, nn.Conv2d):
                places //= math.prod(layer.stride)
                count += 2 * places * layer.weight.numel()
        return count + 2 * places * self.head.weight.numel()

    def normalize(self, images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels to what `forward` takes."""
        kind = "none" if self.scaling is None else self.scaling.kind
        return normalize(images, self.pixel_statistics, kind, self.pixel_window)

    def denormalize(self, images: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
        """The inverse of `normalize`, rounded and clamped."""
        return denormalize(images, self.pixel_statistics, self.config.floats)

    def blocks(self) -> list[nn.Module]:
        """The residual blocks in order."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def set_grad_checkpointing(self, on: bool) -> None:
        """Whether training recomputes the blocks' activations in the backward pass."""
        for block in self.blocks():
            block.checkpointed = on  # type: ignore[assignment]

    @classmethod
    def build(cls, config: dict[str, Any]) -> "Tokenizer":
        """The tokenizer that the fields of a `TokenizerConfig` describe, with new weights."""
        return cls(TokenizerConfig(**config))


def gumbel(
    seed: int,
    epoch: Int64[Tensor, " B"],
    sample: Int64[Tensor, " B"],
    patches: int,
    vocabulary: int,
) -> Float[Tensor, "B N V"]:
    """Standard Gumbel noise, a function of (seed, epoch, sample): `-log(-log(u))`, u uniform."""
    place = torch.arange(patches * vocabulary, device=sample.device)
    draws = uniform(seed, GUMBEL, epoch.unsqueeze(1), sample.unsqueeze(1), place)
    # The draws are multiples of 2**-24 below 1; zero (infinite) becomes half of one.
    noise = -(-draws.clamp(min=2.0**-25).log()).log()
    return noise.unflatten(1, (patches, vocabulary))


def relax(
    logits: Float[Tensor, "B N V"], noise: Float[Tensor, "B N V"], temperature: float
) -> Float[Tensor, "B N V"]:
    """A differentiable draw of a code: `softmax((logits + noise) / temperature)` (Jang et al. 2017,
    equation 2)."""
    return ((logits + noise) / temperature).softmax(dim=2)


def kl_to_uniform(logits: Float[Tensor, "B N V"]) -> Float[Tensor, "B N"]:
    """Kullback-Leibler divergence in nats of each token's distribution from the uniform one, in 0
    to log V."""
    log_probabilities = logits.log_softmax(dim=2)
    negative_entropy = (log_probabilities.exp() * log_probabilities).sum(dim=2)
    return negative_entropy + math.log(logits.shape[2])


def perplexity(counts: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """exp of the entropy of how often each code is used: V where all are used alike, 1 where one
    is."""
    shares = counts / counts.sum()
    return torch.special.entr(shares).sum().exp()
