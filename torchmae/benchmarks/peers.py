"""Masked Autoencoders of other libraries, for `mae bench`, each in its best configuration.

A builder takes `MAE.config()` and the mask ratio, and returns a module that maps normalized float
images to the loss. Peers draw their masks themselves, inside that call. Their weights are random:
speed does not depend on them.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from torchmae.errors import choose, missing_extra


class Peer(NamedTuple):
    """How to build a peer, the packages it needs, and a note on what differs from torchmae."""

    build: Callable[[dict[str, Any], float], nn.Module]
    packages: tuple[str, ...]
    note: str


class Transformers(nn.Module):
    """`ViTMAEForPreTraining` with SDPA and normalized targets: the same architecture and loss.

    From scratch its positions are zeros (transformers 5.23), which spoils its features, not its
    speed.
    """

    def __init__(self, config: dict[str, Any], mask_ratio: float):
        super().__init__()
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        encoder, decoder = config["encoder"], config["decoder"]
        width = decoder["dim"]
        described: dict[str, Any] = dict(
            image_size=encoder["image_size"][0],
            patch_size=encoder["patch_size"],
            num_channels=encoder["channels"],
            hidden_size=encoder["embed_dim"],
            num_hidden_layers=encoder["depth"],
            num_attention_heads=encoder["num_heads"],
            intermediate_size=int(encoder["embed_dim"] * encoder["mlp_ratio"]),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=decoder["depth"],
            decoder_num_attention_heads=decoder["heads"],
            decoder_intermediate_size=4 * width,
            mask_ratio=mask_ratio,
            norm_pix_loss=True,
            attn_implementation="sdpa",
        )
        self.model = ViTMAEForPreTraining(ViTMAEConfig(**described))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).loss


class Lightly(nn.Module):
    """lightly's masked ViT and decoder (timm's blocks, fused attention), as in its documentation.

    It predicts hidden patches only, normalized by its own function.
    """

    def __init__(self, config: dict[str, Any], mask_ratio: float):
        super().__init__()
        from lightly.models import utils
        from lightly.models.modules import (
            MaskedVisionTransformerDecoderTIMM,
            MaskedVisionTransformerTIMM,
        )
        from timm.models.vision_transformer import VisionTransformer

        encoder, decoder = config["encoder"], config["decoder"]
        width = decoder["dim"]
        vit = VisionTransformer(
            img_size=encoder["image_size"],
            patch_size=encoder["patch_size"],
            in_chans=encoder["channels"],
            embed_dim=encoder["embed_dim"],
            depth=encoder["depth"],
            num_heads=encoder["num_heads"],
            mlp_ratio=encoder["mlp_ratio"],
            num_classes=0,
        )
        self.utils = utils
        self.mask_ratio = mask_ratio
        self.patch_size = encoder["patch_size"]
        self.encoder = MaskedVisionTransformerTIMM(vit)
        self.embed = nn.Linear(encoder["embed_dim"], width)
        shape = dict(embed_dim=width, depth=decoder["depth"], num_heads=decoder["heads"])
        self.decoder = MaskedVisionTransformerDecoderTIMM(vit.patch_embed.num_patches, **shape)
        self.pred = nn.Linear(width, encoder["patch_size"] ** 2 * encoder["channels"])

    def forward(self, images: Tensor) -> Tensor:
        u, size = self.utils, (len(images), self.encoder.sequence_length)
        keep, hide = u.random_token_mask(
            size=size, mask_ratio=self.mask_ratio, device=images.device
        )
        x = self.embed(self.encoder.encode(images, idx_keep=keep))
        tokens = u.repeat_token(self.decoder.mask_token, size)
        x = self.decoder(u.set_at_index(tokens, keep, x.type_as(tokens)))
        prediction = self.pred(u.get_at_index(x, hide))
        # hide counts the class token, which patches do not have.
        target = u.get_at_index(u.patchify(images, self.patch_size), hide - 1)
        return F.mse_loss(prediction.float(), u.normalize_mean_var(target))


def vit_pytorch(config: dict[str, Any], mask_ratio: float) -> nn.Module:
    """vit-pytorch's MAE, which has plain softmax attention only.

    `pool="mean"`: with a class token it raises, since it slices positions along the wrong axis.
    """
    from vit_pytorch.mae import MAE
    from vit_pytorch.vit import ViT

    encoder, decoder = config["encoder"], config["decoder"]
    width = decoder["dim"]
    vit = ViT(
        image_size=encoder["image_size"],
        patch_size=encoder["patch_size"],
        channels=encoder["channels"],
        num_classes=0,
        dim=encoder["embed_dim"],
        depth=encoder["depth"],
        heads=encoder["num_heads"],
        dim_head=encoder["embed_dim"] // encoder["num_heads"],
        mlp_dim=int(encoder["embed_dim"] * encoder["mlp_ratio"]),
        pool="mean",
    )
    return MAE(
        encoder=vit,
        masking_ratio=mask_ratio,
        decoder_dim=width,
        decoder_depth=decoder["depth"],
        decoder_heads=decoder["heads"],
        decoder_dim_head=width // decoder["heads"],
    )


PEERS = {
    "transformers": Peer(Transformers, ("transformers",), "SDPA; predicts every patch"),
    "lightly": Peer(Lightly, ("lightly", "timm"), "timm's blocks, fused attention"),
    "vit-pytorch": Peer(
        vit_pytorch,
        ("vit_pytorch", "einops"),
        "plain attention, no class token, no qkv bias, pixels not normalized: "
        "a little less work than is counted",
    ),
}


WITHOUT = {"timm": "timm has no Masked Autoencoder to train (its blocks are those of lightly)"}


def find_peers(text: str) -> dict[str, Peer]:
    """The peers named in `text`, commas between.

    Raises:
        UserError: a name is unknown, or its library is not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none", *WITHOUT)]
    found = {name: choose(PEERS, name, "peer") for name in names}
    for peer in found.values():
        for package in peer.packages:
            if find_spec(package) is None:
                raise missing_extra(package.replace("_", "-"), "bench")
    return found
