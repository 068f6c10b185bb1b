"""What an encoder is to the rest of torchmae, and the kinds there are. `ENCODERS["mine"] = cls`
adds one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn

from torchmae.errors import choose
from torchmae.models.encoders.timm import TimmEncoder
from torchmae.models.patches import Size
from torchmae.models.sizes import architecture, check_sizes
from torchmae.models.vit import ViT
from torchmae.scaling import Scaling
from torchmae.settings.options import parse_patch


@runtime_checkable
class Backbone(Protocol):
    """An `nn.Module` with these members.

    Attributes:
        embed_dim: width of the tokens.
        image_size, patch, grid: height and width in pixels, in pixels and in patches.
        channels: of the images.
        num_prefix_tokens: tokens before those of the patches; if there are any, the class token is
            the first.
        mean, std: one value a channel, for pixels in 0..1, or for floats after `scaling` (None: the
            images are of 8 bits); what `normalize` uses.
    """

    embed_dim: int
    image_size: tuple[int, int]
    patch: Size
    grid: Size
    channels: int
    num_prefix_tokens: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling: Scaling | None

    def __call__(
        self,
        images: Float[Tensor, "B C H W"],
        keep: Int64[Tensor, "B K"] | None = None,
        layer: int | None = None,
        draws: Float[Tensor, "B depth 2"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Tokens of the patches `keep` (None: of all) of normalised images, after the prefix
        tokens.

        `layer` stops after so many layers; `draws`, uniform in 0..1, are the randomness of
        stochastic depth.
        """
        ...

    def forward_layers(self, images: Float[Tensor, "B C H W"]) -> Iterator[Float[Tensor, "B T D"]]:
        """What `__call__` gives for `layer` = 1, 2, ... and the last, in one pass."""
        ...

    def forward_intermediates(
        self,
        images: Float[Tensor, "B C H W"],
        taps: Sequence[int],
        draws: Float[Tensor, "B depth 2"] | None = None,
        norm: bool = False,
    ) -> list[Float[Tensor, "B D h w"]]:
        """Feature maps after the layers `taps` (0 is the first, -1 the last), without the final
        norm or (`norm`) with it.

        Of images of any height and width, which are padded to the patch.
        """
        ...

    def layers(self) -> list[nn.Module]:
        """The blocks in order, for layer decay, partial fine-tuning, FSDP and checkpointing."""
        ...

    def config(self) -> dict[str, Any]:
        """JSON-able arguments that build this encoder again, and its "kind", a name in
        `ENCODERS`."""
        ...

    def normalize(self, images: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels to what the encoder takes."""
        ...

    def denormalize(self, images: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
        """The inverse of `normalize`."""
        ...

    def set_grad_checkpointing(self, on: bool) -> None:
        """Whether training recomputes activations in the backward pass."""
        ...

    def set_drop_path(self, rate: float) -> None:
        """The stochastic depth rate of the last layer."""
        ...

    # To begin another training from its weights:

    def resize(self, image_size: tuple[int, int]) -> None:
        """Makes the encoder take images of another size."""
        ...

    def adapt(
        self,
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scaling: Scaling | dict[str, Any] | None = None,
    ) -> None:
        """Makes the encoder take images of other channels and statistics."""
        ...

    def remove_norm(self) -> None:
        """Removes the final norm, for a head that has one of its own."""
        ...

    def restore_norm(self) -> bool:
        """Adds a new final norm where it was removed; True if so."""
        ...

    # Of nn.Module:

    def eval(self) -> "Backbone": ...
    def to(self, *args: Any, **kwargs: Any) -> "Backbone": ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


ENCODERS: dict[str, Callable[..., Backbone]] = {"vit": ViT, "timm": TimmEncoder}


def build_encoder(config: dict[str, Any]) -> Backbone:
    """The encoder that `config()` describes, with new weights.

    Args:
        config: "kind" (a name in `ENCODERS`; "vit" if there is none) and the arguments of that
            class; lists, which JSON makes of tuples, become tuples again.

    Raises:
        UserError: the kind is unknown, or its arguments do not fit together.
    """
    check_sizes(config, zero=("registers",))
    rest = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
    return choose(ENCODERS, str(rest.pop("kind", "vit")), "encoder")(**rest)


def new_encoder(
    model: str | None, image_size: tuple[int, int], patch_size: str | int | None, channels: int
) -> Backbone:
    """An encoder of a named size, or with the architecture of a run folder, with new weights.

    Args:
        model: the name or the folder, see `architecture`.
        image_size: height and width in pixels.
        patch_size: --patch-size; None: the architecture has its own.
        channels: of the images.
    """
    patch = None if patch_size is None else parse_patch(patch_size)
    own = {"image_size": image_size, "patch_size": patch, "channels": channels}
    known = {name: v for name, v in architecture(model).items() if name != "scaling"}
    return build_encoder({**known, **own, "mean": None, "std": None})
