"""What a pre-training starts with: the weights of its seed, or those of another run (`--from`)."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from torchmae.data.scan import Scan
from torchmae.errors import UserError
from torchmae.models.mae import MAE
from torchmae.models.patches import IMAGENET, grid_of
from torchmae.models.sizes import SIZES, size_of
from torchmae.models.vit import ViT
from torchmae.models.weights import load, load_mae, seeded
from torchmae.options import parse_size, size_text
from torchmae.runfolder import kind_of, read_config
from torchmae.tasks.pretrain.config import Pretrain


class InitRun(NamedTuple):
    """The run of `--from`: its encoder, and the whole model if its decoder goes on too."""

    run: str
    encoder: ViT
    mae: MAE | None


def init_from_run(config: Pretrain, channels: int) -> tuple[Pretrain, InitRun | None]:
    """The run of `--from`, and the settings with what its weights decide; `UserError` for one that contradicts them.

    `channels` are those of the data.
    """
    if config.from_run is None:
        return config, None
    run, channels = config.from_run, config.channels or channels
    whole = kind_of(read_config(run)) == "mae" and not config.new_decoder
    mae = load_mae(run) if whole else None
    encoder = mae.encoder if mae else load(run)
    name = name_of(encoder)
    sizes = (
        name
        or f"none with a name ({encoder.embed_dim} wide, {encoder.depth} blocks, {encoder.num_heads} heads)"
    )
    fixed = {"model": sizes, "patch_size": encoder.patch_size}
    fixed |= {n: v for n, v in (mae.config() if mae else {}).items() if n.startswith("decoder_")}
    for setting, has in fixed.items():
        asked = getattr(config, setting)
        if asked not in (None, has):
            otherwise = ", or add --new-decoder" if setting.startswith("decoder_") else ""
            flag = f"--{setting.replace('_', '-')}"
            raise UserError(
                f"{flag} {asked}, but that of {run} is {has}: leave {flag} out{otherwise}"
            )
    size = parse_size(config.image_size or size_text(encoder.image_size))
    grid_of(size, encoder.patch_size)
    if config.normalize == "run" and channels != encoder.channels:
        raise UserError(
            f"--normalize run: {run} has statistics of {encoder.channels} channels, and there are {channels}: use "
            "--normalize data"
        )
    adopted = replace(
        config,
        model=name,
        image_size=size_text(size),
        patch_size=encoder.patch_size,
        normalize=config.normalize or ("run" if channels == encoder.channels else "data"),
    )
    return adopted, InitRun(run, encoder, mae)


def name_of(encoder: ViT) -> str | None:
    """The name of the encoder's size, if it has one."""
    own = {"embed_dim": encoder.embed_dim, "depth": encoder.depth, "num_heads": encoder.num_heads}
    return next(
        (name for name, size in SIZES.items() if size == own and encoder.mlp_ratio == 4), None
    )


def build(config: Pretrain, found: Scan, init_run: InitRun | None) -> tuple[MAE, str]:
    """The model before its first step, and where it comes from in words. What is new has the weights of the seed."""
    assert config.patch_size and config.channels and config.image_size and config.normalize
    if config.normalize == "imagenet" and config.channels != 3:
        raise UserError(
            f"--normalize imagenet needs 3 channels, not {config.channels}: use --normalize data"
        )
    statistics = {"data": (found.mean, found.std), "imagenet": IMAGENET}
    if init_run is not None:
        statistics["run"] = (init_run.encoder.mean, init_run.encoder.std)
    mean, std = statistics[config.normalize]
    size = parse_size(config.image_size)
    with seeded(config.seed):
        if init_run is not None:
            return warm_start(config, init_run, size, mean, std)
        assert config.model
        encoder = ViT(
            size, config.patch_size, config.channels, **size_of(config.model), mean=mean, std=std
        )
        return with_new_decoder(config, encoder), "from scratch"


def with_new_decoder(config: Pretrain, encoder: ViT) -> MAE:
    """The encoder with a fresh decoder."""
    dims = (config.decoder_dim, config.decoder_depth, config.decoder_heads)
    return MAE(
        encoder, *dims, target=config.target, loss_on=config.loss_on, encode_all=config.encode_all
    )


def warm_start(
    config: Pretrain,
    init_run: InitRun,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[MAE, str]:
    """The model with the weights of another run, made to fit these images; what was changed in words."""
    encoder, notes = init_run.encoder, []
    if encoder.restore_norm():
        notes.append("new last norm (the classifier's was its own)")
    if size != encoder.image_size:
        old = "{}x{}".format(*encoder.grid)
        encoder.resize(size)
        notes.append(f"positions resized from {old} to {encoder.grid[0]}x{encoder.grid[1]}")
    if len(mean) != encoder.channels:
        notes.append(f"patch weights of {encoder.channels} channels averaged to {len(mean)}")
    encoder.adapt(len(mean), mean, std)
    if init_run.mae is None:
        return with_new_decoder(config, encoder), "; ".join(
            [f"{init_run.run}: encoder, with a new decoder", *notes]
        )
    if config.target != init_run.mae.target_name:
        notes.append(
            f"target {config.target}, was {init_run.mae.target_name} (its layer keeps its weights)"
        )
    if config.encode_all != init_run.mae.encode_all:
        now, was = ("encoder", "decoder") if config.encode_all else ("decoder", "encoder")
        notes.append(f"mask tokens in the {now}, were in the {was} (a new one)")
    own = {
        name: value for name, value in init_run.mae.config().items() if name.startswith("decoder_")
    }
    model = with_new_decoder(replace(config, **own), encoder)
    carry_decoder(init_run.mae, model)
    return model, "; ".join([f"{init_run.run}: encoder and decoder", *notes])


def carry_decoder(old: MAE, new: MAE) -> None:
    """Gives `new` all weights of `old` behind the encoder. Fixed positions of another grid, and parts that `old` did without
    (such as a statistics head), stay as they are in `new`."""
    own = new.state_dict()
    weights = {
        n: w for n, w in old.state_dict().items() if n in own and not n.startswith("encoder.")
    }
    if old.decoder.grid != new.decoder.grid:
        del weights["decoder.pos_embed"]
    if old.decoder.pred.out_features != new.decoder.pred.out_features:
        for name in ("decoder.pred.weight", "decoder.pred.bias"):
            weights[name] = average_channels(
                weights[name], new.encoder.patch_size, new.encoder.channels
            )
    new.load_state_dict(own | weights)


def average_channels(rows: Tensor, patch_size: int, channels: int) -> Tensor:
    """The rows of a layer that predicts patches (row, column, channel), for other channels: each new one gets the mean of
    the old ones, since a grey picture is the mean of the colours."""
    cut = rows.unflatten(0, (patch_size**2, -1)).mean(1)
    return torch.repeat_interleave(cut, channels, dim=0)
