"""An encoder of timm as a `Backbone`: a ViT, BEiT or EVA, computed by timm's own code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchmae.errors import UserError, library, nearest
from torchmae.models.patches import grid_of, pad_to_patch
from torchmae.models.vit import PixelInput, drop_path
from torchmae.scaling import Scaling

# Classes of timm whose tokens are those of a grid of patches, and the modules that make them.
CLASSES = ("VisionTransformer", "VisionTransformerDistilled", "Beit", "Eva")
MODULES = ("vision_transformer", "deit", "beit", "eva")
ALLOWED = "vit_* (also DINO, DINOv2, DINOv3, CLIP, SigLIP), deit*, beit*, eva* and their like"


class DropPath(nn.Module):
    """Stochastic depth of one branch, by draws that are given before the forward pass.

    timm's own draws from torch's generator, which a resumed training would not repeat.

    Attributes:
        rate: how often the branch is zero.
        draws: uniform in 0..1, one for each image; None: nothing is dropped. They stay until the
            next forward pass, since gradient checkpointing computes the branch again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0
        self.draws: Tensor | None = None

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return x if self.draws is None else drop_path(x, self.draws, self.rate)


class TimmEncoder(PixelInput):
    """The encoder of a model of timm, with new weights.

    A model without a class token has no prefix tokens here: registers alone are left out of what
    `forward` returns.

    Args:
        name: as for `timm.create_model`, such as "vit_small_patch14_reg4_dinov2".
        image_size: `(H, W)` in pixels; None: that of timm's configuration.
        channels: of the images.
        mean, std: one value for each channel, for pixels in 0..1; None: those of timm's
            configuration, or 0.5 where the channels are others.
        scaling: see `PixelInput`.
        norm: whether there is a norm after the last block; None: as timm has it. (timm leaves it to
            the head in models that pool the mean.)
        known: "patch_size", "embed_dim", "depth", as `config` states them for readers who build
            nothing.

    Raises:
        UserError: timm is not installed, has no such model, or its tokens are no grid of patches;
            the size does not fit the patches; `known` is of another model.
    """

    def __init__(  # noqa: PLR0913 (as of the ViT)
        self,
        name: str,
        image_size: tuple[int, int] | None = None,
        channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        norm: bool | None = None,
        scaling: Scaling | dict[str, Any] | None = None,
        **known: Any,
    ):
        model = create(name, image_size, channels)
        cfg, half = model.pretrained_cfg, (0.5,) * channels
        given = (tuple(mean or cfg["mean"]), tuple(std or cfg["std"]))
        mean, std = (x if len(x) == channels else half for x in given)
        super().__init__(channels, mean, std, scaling)
        self.name = name
        self.model = model
        self.embed_dim: int = model.embed_dim
        self.patch: tuple[int, ...] = tuple(model.patch_embed.patch_size)
        self.image_size: tuple[int, int] = tuple(model.patch_embed.img_size)
        self.grid = grid_of(self.image_size, self.patch)
        has_class = getattr(model, "cls_token", None) is not None
        self.num_prefix_tokens: int = model.num_prefix_tokens if has_class else 0
        self.left_out: int = model.num_prefix_tokens - self.num_prefix_tokens
        if norm is False:
            self.remove_norm()
        elif norm:
            self.restore_norm()
        other = {n: v for n, v in known.items() if self.config().get(n) != v and v is not None}
        if other:
            raise UserError(
                f"timm's {name} has not {', '.join(f'{n} {v}' for n, v in other.items())}: it is "
                "another version of timm, or a changed config.json"
            )

    def config(self) -> dict[str, Any]:
        """JSON-able arguments of `build_encoder`."""
        square = len(set(self.patch)) == 1
        return {
            "kind": "timm",
            "name": self.name,
            "image_size": self.image_size,
            "patch_size": self.patch[0] if square else self.patch,
            "channels": self.channels,
            "embed_dim": self.embed_dim,
            "depth": len(self.model.blocks),
            **self.pixel_config(),
            "norm": not isinstance(self.model.norm, nn.Identity),
        }

    def layers(self) -> list[nn.Module]:
        """The blocks in order, for layer decay, partial fine-tuning, FSDP and checkpointing."""
        return list(self.model.blocks)

    def patch_projection(self) -> nn.Conv2d:
        """The convolution that embeds patches."""
        proj = self.model.patch_embed.proj
        assert isinstance(proj, nn.Conv2d)
        return proj

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int64[Tensor, "B K"] | None = None,
        layer: int | None = None,
        draws: Float[Tensor, "B depth 2"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What timm's `forward_features` returns: tokens after the final norm, if it has one.

        Args:
            images: normalised floats of `image_size`.
            keep: None; timm's models cannot skip patches.
            layer: stop after this many blocks (1..depth).
            draws: uniform in 0..1, the randomness of stochastic depth while training.
        """
        if keep is not None:
            raise UserError(f"timm's {self.name} cannot skip patches, as pre-training needs")
        expected = (self.channels, *self.image_size)
        if images.shape[1:] != expected:
            raise UserError(
                f"the encoder takes images of {' x '.join(map(str, expected))} (channels, height, "
                f"width), not {' x '.join(map(str, images.shape[1:]))}"
            )
        self.set_draws(draws)
        if layer is None:
            tokens = self.model.forward_features(images)
        else:
            (tokens,) = self.tokens_after(images, [layer - 1], "NLC", norm=True)
        return tokens[:, self.left_out :]

    def set_draws(self, draws: Float[Tensor, "B depth 2"] | None) -> None:
        """Gives each branch its randomness of the next forward pass."""
        for i, block in enumerate(self.model.blocks):
            drops = draws is not None and block.training
            for j, branch in enumerate(branches(block)):
                branch.draws = draws[:, i, j] if drops and branch.rate else None  # type: ignore[index]

    def tokens_after(
        self, images: Float[Tensor, "B C H W"], blocks: Sequence[int], form: str, norm: bool
    ) -> list[Tensor]:
        """The tokens after some blocks (their numbers from 0, each once), in timm's "NLC", prefix
        tokens first, or as maps without these, "NCHW"."""
        depth = len(self.model.blocks)
        if not all(0 <= block < depth for block in blocks):
            raise UserError(f"layers {[b + 1 for b in blocks]} of timm's {self.name}: 1 to {depth}")
        found = self.model.forward_intermediates(
            images,
            indices=sorted(blocks),
            return_prefix_tokens=form == "NLC" and self.model.num_prefix_tokens > 0,
            norm=norm,
            stop_early=True,
            output_fmt=form,
            intermediates_only=True,
        )
        return [cat_prefix(*one) if isinstance(one, tuple) else one for one in found]

    def forward_layers(self, images: Float[Tensor, "B C H W"]) -> Iterator[Float[Tensor, "B T D"]]:
        """What `forward` returns for `layer` = 1, 2, ... depth, in one pass."""
        for tokens in self.tokens_after(images, range(len(self.model.blocks)), "NLC", norm=True):
            yield tokens[:, self.left_out :]

    def forward_intermediates(
        self,
        images: Float[Tensor, "B C H W"],
        taps: Sequence[int],
        draws: Float[Tensor, "B depth 2"] | None = None,
        norm: bool = False,
    ) -> list[Float[Tensor, "B D h w"]]:
        """Feature maps of the patches after some blocks (0 is the first, -1 the last), before the
        final norm or (`norm`) after it.

        Raises:
            UserError: images of another size than `image_size`, of a model of timm that takes one
                size only.
        """
        depth = len(self.model.blocks)
        if not all(-depth <= tap < depth for tap in taps):
            raise UserError(f"taps {list(taps)}: blocks are numbered 0 to {depth - 1}")
        wanted = sorted({tap % depth for tap in taps})
        images = pad_to_patch(images, self.patch)
        self.set_draws(draws)
        with self.any_size(images):
            maps = dict(zip(wanted, self.tokens_after(images, wanted, "NCHW", norm)))
        return [maps[tap % depth] for tap in taps]

    def class_attention(
        self, images: Float[Tensor, "B C H W"], block: int
    ) -> Float[Tensor, "B heads h w"]:
        """How much the class token takes of each patch in a block (its number from 0).

        The weights are what timm's own attention multiplies the values with, caught where it would
        drop some of them.

        Raises:
            UserError: as `forward_intermediates`, or the model has no class token.
        """
        if not self.num_prefix_tokens:
            raise UserError(f"timm's {self.name} has no class token")
        images = pad_to_patch(images, self.patch)
        grid = grid_of((images.shape[2], images.shape[3]), self.patch)
        attn: Any = self.model.blocks[block].attn
        caught: list[Tensor] = []
        hook = attn.attn_drop.register_forward_pre_hook(
            lambda _, inputs: caught.append(inputs[0][:, :, 0])
        )
        fused, attn.fused_attn = attn.fused_attn, False
        try:
            with self.any_size(images):
                self.tokens_after(images, [block], "NCHW", norm=False)
        finally:
            hook.remove()
            attn.fused_attn = fused
        return caught[0][:, :, self.model.num_prefix_tokens :].unflatten(2, grid)

    @contextmanager
    def any_size(self, images: Float[Tensor, "B C H W"]) -> Iterator[None]:
        """While it lasts, timm resizes the positions to the images, if these have another size."""
        model, embed = self.model, self.model.patch_embed
        if tuple(images.shape[2:]) == self.image_size:
            yield
            return
        if type(model).__name__ != "VisionTransformer":
            have = "x".join(map(str, images.shape[2:]))
            want = "x".join(map(str, self.image_size))
            raise UserError(f"timm's {self.name} takes images of {want} pixels only, not {have}")
        # What `dynamic_img_size=True` sets when a model is made.
        flexible: dict[nn.Module, dict[str, Any]] = {
            embed: {"strict_img_size": False, "flatten": False, "output_fmt": "NHWC"},
            model: {"dynamic_img_size": True},
        }
        before = {one: {name: getattr(one, name) for name in flexible[one]} for one in flexible}
        try:
            set_attributes(flexible)
            yield
        finally:
            set_attributes(before)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth: `rate` in the last block, growing linearly from 0 in the first."""
        blocks = self.model.blocks
        for i, block in enumerate(blocks):
            if rate and len(branches(block)) != 2:
                raise UserError(
                    f"the blocks of timm's {self.name} ({type(block).__name__}) have no two "
                    "branches to drop: --drop-path 0"
                )
            for branch in branches(block):
                branch.rate = rate * i / max(1, len(blocks) - 1)

    def set_grad_checkpointing(self, on: bool) -> None:
        """Whether training recomputes activations in the backward pass."""
        self.model.set_grad_checkpointing(on)

    def resize(self, image_size: tuple[int, int]) -> None:
        """Makes the encoder take images of another size, as timm does: positions are resized
        (antialiased bicubic), tables of relative positions interpolated."""
        self.grid = grid_of(image_size, self.patch)
        self.model.set_input_size(img_size=image_size)
        self.image_size = image_size

    def remove_norm(self) -> None:
        """Removes the final norm, for a classifier that pools the mean and has a norm of its
        own."""
        self.model.norm = nn.Identity()

    def restore_norm(self) -> bool:
        """Adds a new final norm where there is none; True if so."""
        gone = isinstance(self.model.norm, nn.Identity)
        if gone:
            self.model.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        return gone


def set_attributes(values: dict[nn.Module, dict[str, Any]]) -> None:
    """Sets attributes of modules, each by its name."""
    for module, attributes in values.items():
        for name, value in attributes.items():
            setattr(module, name, value)


def cat_prefix(
    patches: Float[Tensor, "B N D"], prefix: Float[Tensor, "B X D"]
) -> Float[Tensor, "B T D"]:
    """Tokens in the order of a forward pass."""
    return torch.cat([prefix, patches], dim=1)


def branches(block: nn.Module) -> list[DropPath]:
    """The stochastic depths of a block that `create` has made ours: of attention and of MLP."""
    found = (getattr(block, name, None) for name in ("drop_path1", "drop_path2"))
    return [one for one in found if isinstance(one, DropPath)]


def create(name: str, image_size: tuple[int, int] | None, channels: int) -> Any:
    """A model of timm without its head, with new weights.

    Raises:
        UserError: as `TimmEncoder`.
    """
    check_name(name)
    timm = library("timm", "timm")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        model = timm.create_model(
            name, pretrained=False, num_classes=0, in_chans=channels, **options
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"timm's {name} could not be made: {reason}") from error
    embed = getattr(model, "patch_embed", None)
    if type(model).__name__ not in CLASSES or type(embed).__name__ != "PatchEmbed":
        raise not_a_grid(name)
    model.fc_norm = nn.Identity()
    if getattr(model, "attn_pool", None) is not None:
        model.attn_pool = None
    for block in model.blocks:
        if hasattr(block, "drop_path1") and hasattr(block, "drop_path2"):
            block.drop_path1, block.drop_path2 = DropPath(), DropPath()
    return model


def check_name(name: str) -> None:
    """Raises UserError unless timm has a model of this name that gives a grid of tokens; nothing is
    built."""
    timm = library("timm", "timm")
    if not timm.is_model(name):
        near = nearest(name, timm.list_models()) or nearest(name, timm.list_pretrained())
        hint = f". Did you mean {near}?" if near else ""
        raise UserError(f"timm has no model '{name}'{hint}: timm.list_models() has their names")
    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    if module not in MODULES:
        raise not_a_grid(name)


def not_a_grid(name: str) -> UserError:
    return UserError(
        f"timm's {name} is no plain transformer with a token for each patch; possible: {ALLOWED}"
    )
