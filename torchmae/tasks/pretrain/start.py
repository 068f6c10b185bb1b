"""What a pre-training starts with: the weights of its seed, or those of another run (`--from`)."""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from torchmae.data.cache.choose import CACHES
from torchmae.data.scan import Scan
from torchmae.errors import UserError, choose, missing_extra
from torchmae.models.mae import LOSSES, MAE
from torchmae.models.masking import masking
from torchmae.models.patches import IMAGENET, grid_of
from torchmae.models.sizes import SIZES, size_of
from torchmae.models.targets import TARGETS
from torchmae.models.vit import ViT
from torchmae.models.weights import load, load_mae, seeded
from torchmae.runfolder import kind_of, read_config
from torchmae.settings.options import changed, parse_size, size_text
from torchmae.tasks.pretrain.config import Pretrain, ResolvedPretrain


class InitRun(NamedTuple):
    """The run of `--from`: its encoder, and the whole model if its decoder goes on too."""

    run: str
    encoder: ViT
    mae: MAE | None


def init_from_run(config: Pretrain, channels: int) -> tuple[Pretrain, InitRun | None]:
    """The run of `--from`, and the settings with what its weights decide; `UserError` for one that contradicts them.

    `channels` are those of the data.
    """
    run, channels = config.model.from_run, config.decode.channels or channels
    if run is None:
        return config, None
    has_decoder = kind_of(read_config(run)) == "mae"
    whole = has_decoder and not config.model.new_decoder
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
        wanted = getattr(config.model, setting)
        if wanted not in (None, has):
            otherwise = ", or add --new-decoder" if setting.startswith("decoder_") else ""
            flag = f"--{setting.replace('_', '-')}"
            raise UserError(
                f"{flag} {wanted}, but that of {run} is {has}: leave {flag} out{otherwise}"
            )
    size = parse_size(config.model.image_size or size_text(encoder.image_size))
    grid_of(size, encoder.patch_size)
    if config.model.normalize == "run" and channels != encoder.channels:
        raise UserError(
            f"--normalize run: {run} has statistics of {encoder.channels} channels, and there are {channels}: use "
            "--normalize data"
        )
    adopted = changed(
        config,
        model=name,
        image_size=size_text(size),
        patch_size=encoder.patch_size,
        normalize=config.model.normalize or ("run" if channels == encoder.channels else "data"),
    )
    return adopted, InitRun(run, encoder, mae)


def name_of(encoder: ViT) -> str | None:
    """The name of the encoder's size, if it has one."""
    own = {"embed_dim": encoder.embed_dim, "depth": encoder.depth, "num_heads": encoder.num_heads}
    return next(
        (name for name, size in SIZES.items() if size == own and encoder.mlp_ratio == 4), None
    )


def check_names(config: Pretrain) -> None:
    """Raises UserError for a masking, target or loss that there is not, a plugin's included."""
    masking(config.masking.masking)
    choose(TARGETS, config.masking.target, "target")
    choose(LOSSES, config.masking.loss_on, "loss")
    if config.runtime.cache is not None:
        choose(CACHES, config.runtime.cache, "--cache")
    if config.output.tensorboard and find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "tensorboard")
    if config.model.image_size is not None and config.model.patch_size is not None:
        grid_of(parse_size(config.model.image_size), config.model.patch_size)


def build_model(config: ResolvedPretrain, found: Scan, init_run: InitRun | None) -> tuple[MAE, str]:
    """The model before its first step, and where it comes from in words. What is new has the weights of the seed."""
    normalize, channels = config.model.normalize, config.decode.channels
    if normalize == "imagenet" and channels != 3:
        raise UserError(
            f"--normalize imagenet needs 3 channels, not {channels}: use --normalize data"
        )
    statistics = {"data": (found.mean, found.std), "imagenet": IMAGENET}
    if init_run is not None:
        statistics["run"] = (init_run.encoder.mean, init_run.encoder.std)
    mean, std = statistics[normalize]
    size = parse_size(config.model.image_size)
    with seeded(config.optim.seed):
        if init_run is not None:
            return warm_start(config, init_run, size, mean, std)
        assert config.model.model is not None  # only encoders that exist already have no name
        dims = size_of(config.model.model)
        patch = config.model.patch_size
        encoder = ViT(size, patch, channels, **dims, mean=mean, std=std)
        return with_new_decoder(config, encoder), "from scratch"


def with_new_decoder(config: ResolvedPretrain, encoder: ViT) -> MAE:
    """The encoder with a new decoder."""
    model, masking = config.model, config.masking
    dims = (model.decoder_dim, model.decoder_depth, model.decoder_heads)
    return MAE(
        encoder,
        *dims,
        target=masking.target,
        loss_on=masking.loss_on,
        encode_all=masking.encode_all,
    )


def warm_start(
    config: ResolvedPretrain,
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
    target, encode_all = config.masking.target, config.masking.encode_all
    if target != init_run.mae.target_name:
        notes.append(
            f"target {target}, was {init_run.mae.target_name} (its layer keeps its weights)"
        )
    if encode_all != init_run.mae.encode_all:
        now, was = ("encoder", "decoder") if encode_all else ("decoder", "encoder")
        notes.append(f"mask tokens in the {now}, were in the {was} (a new one)")
    own = {
        name: value for name, value in init_run.mae.config().items() if name.startswith("decoder_")
    }
    model = with_new_decoder(changed(config, **own), encoder)
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
