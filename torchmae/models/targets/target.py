"""The contract of a target."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from torchmae.models.encoders import Backbone
from torchmae.models.masking import Mask
from torchmae.models.patches import Size, patch_statistics, patchify
from torchmae.models.vit import ViT, product_flops


class Target(nn.Module):
    """What is predicted for a patch, and how wrong a prediction is.

    A target may have state (buffers), which is saved with the model's weights. One whose state
    comes from data says so with `needs_fit`; `mae pretrain` then calls `fit` once, before the first
    step of a new run. One that is made of the model of another run says so with `run_kinds`; its
    flag is then `--target NAME:RUN`.

    Args:
        patch: height and width of a patch in pixels.
        channels: of the images.

    With `run_kinds`, `__init__` gets `model`, `mean` and `std` too: what config.json of that run
    says of its model, and mean and std of the normalised images, by channel.

    Attributes:
        width: values predicted for a patch.
        needs_fit: True while the state of the target is still to be fitted.
        needs_statistics: True if a prediction has no brightness and contrast of its own; the
            decoder then has a head that predicts mean and std of each hidden patch, which
            `to_pixels` gets.
        follows_encoder: a class attribute; True for one that is made of the encoder itself, as
            `model` of its arguments says, and is told of its weights by `follow` at the start and
            after each step. Such a truth may collapse, which is watched.
        run_kinds: the kinds of run (`runfolder.kind_of`) that it can be made of; (): of none.
        run_words: what such a run is, in words.
        network: with `run_kinds` the module that gets the weights of that run, before the first
            step of a new run. They are part of the target's state, as buffers: nothing trains them.
    """

    follows_encoder: ClassVar[bool] = False
    run_kinds: ClassVar[tuple[str, ...]] = ()
    run_words: ClassVar[str] = ""
    network: nn.Module
    width: int
    needs_fit: bool = False
    needs_statistics: bool = False

    def __init__(self, patch: Size, channels: int):
        super().__init__()
        self.patch = patch
        self.channels = channels

    @staticmethod
    def network_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the weights of that run those of `network`: all, unless it is a part of its model."""
        return weights

    def fit(self, patches: Float[Tensor, "n P"]) -> None:
        """Fits the state to a sample of patches of normalised images, float32; nothing unless a
        target needs it."""

    def follow(self, encoder: Backbone, decay: float) -> None:
        """Takes over the encoder's weights, for a target that follows it.

        Args:
            encoder: as it is now.
            decay: how much of its own weights the target retains, in [0, 1].
        """

    def forward(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> Shaped[Tensor, "B M ..."]:
        """The truth about the patches `ids`, from normalised images: `width` values each, or
        whatever `loss` compares predictions with."""
        raise NotImplementedError

    def loss(
        self, prediction: Float[Tensor, "B M width"], truth: Shaped[Tensor, "B M ..."]
    ) -> Float[Tensor, ""]:
        """Mean squared error over all values (paper section 3)."""
        return F.mse_loss(prediction, truth)

    def flops(self, grid: Size) -> int:
        """Floating-point operations of a network that `forward` runs on one image of so many
        patches; 0 where there is none."""
        return 0

    def with_statistics(
        self, images: Float[Tensor, "B C H W"], ids: Int64[Tensor, "B M"]
    ) -> tuple[Shaped[Tensor, "B M ..."], Float[Tensor, "B M 2"] | None]:
        """`forward`, and mean and std of each patch if there is a head that predicts them."""
        truth = self(images, ids)
        if not self.needs_statistics:
            return truth, None
        return truth, patch_statistics(patchify(images, self.patch, ids))

    def trivial_losses(
        self,
        images: Float[Tensor, "B C H W"],
        mask: Mask,
        seen: Float[Tensor, "B C H W"],
        counted: Bool[Tensor, "B N"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses of predictors that have learned nothing, by name, on `mask.predicted`.

        They are logged as "loss of NAME" beside the loss, and a training that is not better than
        the least of them has not learned. Here: the mean of each patch's own values, the mean of
        the visible patches and, where nothing is hidden, the noisy patches as they are.

        Args:
            images: normalised.
            mask: their patches.
            seen: the images as the encoder gets them: with noise, if there is any.
            counted: the patches that the loss counts; None: all.
        """
        truth, visible = self(images, mask.predicted), self(seen, mask.keep)
        guesses = {"patch mean": truth.mean(2, keepdim=True), "visible mean": visible.mean(1, True)}
        if not mask.hide.shape[1]:
            guesses["noisy input"] = visible
        if counted is None:
            return {name: self.loss(x.expand_as(truth), truth) for name, x in guesses.items()}
        kept = counted.gather(1, mask.predicted)
        if not kept.any():
            return {}
        return {
            name: self.loss(x.expand_as(truth)[kept].unsqueeze(0), truth[kept].unsqueeze(0))
            for name, x in guesses.items()
        }

    def to_pixels(
        self, prediction: Float[Tensor, "B M width"], statistics: Float[Tensor, "B M 2"] | None
    ) -> Float[Tensor, "B M P"]:
        """A prediction as the values of normalised pixels, for pictures; optional, without it there
        are none.

        Args:
            prediction: what the decoder predicts.
            statistics: mean and std of each patch, predicted or true; None unless
                `needs_statistics`.
        """
        raise NotImplementedError

    @classmethod
    def has_pictures(cls) -> bool:
        """Whether predictions become pixels (`to_pixels`)."""
        return cls.to_pixels is not Target.to_pixels


def frozen(network: nn.Module) -> nn.Module:
    """A network with buffers, NaN as long as nothing is loaded, in place of parameters; their names
    stay. No optimizer, gradient norm or sharding knows of them."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, torch.full_like(parameter.detach(), torch.nan))
    return network


def encoder_flops(encoder: Backbone, grid: Size) -> int:
    """Operations of an encoder's forward pass over one whole image of so many patches, matrix
    products only; 0 for encoders that do not count theirs."""
    if not isinstance(encoder, ViT):
        return 0
    patches, dim, hidden = math.prod(grid), encoder.embed_dim, encoder.embed_dim * encoder.mlp_ratio
    tokens = encoder.num_prefix_tokens + patches
    block = product_flops(tokens, dim, 4 * dim + 2 * int(hidden))
    block += 2 * product_flops(tokens, dim, tokens)
    pixels = math.prod(encoder.patch) * encoder.channels
    return encoder.depth * block + product_flops(patches, pixels, dim)


def conversion(
    ours: tuple[tuple[float, ...], tuple[float, ...]], theirs: Float[Tensor, "2 C"]
) -> Float[Tensor, "2 C 1 1"]:
    """Scale and shift from images that are normalised by (mean, std) to those of a network."""
    own = torch.tensor(ours)
    return torch.stack([own[1] / theirs[1], (own[0] - theirs[0]) / theirs[1]]).view(2, -1, 1, 1)
