"""What a pre-training starts with: the weights of its seed, or those of another run (`--from`); a
fitted target."""

import logging
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchmae.data.loader import Batches
from torchmae.data.scan import Scan
from torchmae.data.transforms import CenterCropResize
from torchmae.errors import UserError, choose
from torchmae.models.decoders import DECODERS, DecoderConfig, decoder_config
from torchmae.models.encoders import Backbone, build_encoder
from torchmae.models.encoders.timm import TimmEncoder
from torchmae.models.mae import LOSSES, MAE
from torchmae.models.masking import masking, noise
from torchmae.models.patches import IMAGENET, Size, as_size, grid_of, patchify
from torchmae.models.sizes import SIZES, size_of
from torchmae.models.targets import TARGETS, split_target
from torchmae.models.targets.pixels import Pixels
from torchmae.models.targets.tokens import Tokens
from torchmae.models.vit import ViT
from torchmae.models.weights import load, load_mae, load_weights, read_weights, seeded
from torchmae.runfolder import kind_of, read_any_config, read_config
from torchmae.scaling import Scaling
from torchmae.settings.options import (
    changed,
    options_of,
    parse_patch,
    parse_size,
    patch_text,
    requested,
    size_text,
)
from torchmae.tasks.pretrain.config import Pretrain, ResolvedPretrain
from torchmae.train.distributed import World

logger = logging.getLogger(__name__)

FIT_IMAGES = 2000  # a target is fitted on patches of so many images
FIT_VALUES = 1 << 26  # and so many values (256 MB), which are 87,000 patches of 16 px


class InitRun(NamedTuple):
    """The run of `--from`: its encoder, and the whole model if its decoder is used too."""

    run: str
    encoder: Backbone
    mae: MAE | None


def init_from_run(
    config: Pretrain, channels: int, dtype: str = "uint8"
) -> tuple[Pretrain, InitRun | None]:
    """The run of `--from`, and the settings with what its weights decide.

    Args:
        config: the settings.
        channels: those of the data.
        dtype: of its pixels.

    Raises:
        UserError: a setting contradicts the weights.
    """
    run, channels = config.model.from_run, config.decode.channels or channels
    if run is None:
        return config, None
    has_decoder = kind_of(read_config(run)) == "mae"
    whole = has_decoder and not config.model.new_decoder
    mae = load_mae(run) if whole else None
    encoder = mae.encoder if mae else load(run)
    if isinstance(encoder, TimmEncoder):
        raise UserError(
            f"{run} has an encoder of timm, which cannot skip patches: of a plain ViT "
            f"mae import timm:{encoder.name} makes one that can"
        )
    size = parse_size(config.model.image_size or size_text(encoder.image_size))
    grid_of(size, encoder.patch)
    fixed = fixed_by(encoder, mae)
    refuse_others(config, run, fixed)
    # Statistics of 8-bit pixels say nothing of other values, and the other way round.
    alike = channels == encoder.channels and (encoder.scaling is None) == (dtype == "uint8")
    if config.model.normalize == "run" and not alike:
        raise UserError(
            f"--normalize run: {run} has statistics of {encoder.channels} channels of "
            f"{'8-bit pixels' if encoder.scaling is None else 'floats'}, and there are {channels} "
            f"of {dtype}: use --normalize data"
        )
    adopted = changed(
        config,
        model=name_of(encoder),
        image_size=size_text(size),
        patch_size=patch_text(encoder.patch),
        registers=fixed["registers"],
        decoder=fixed.get("decoder", config.model.decoder),
        normalize=config.model.normalize or ("run" if alike else "data"),
    )
    return adopted, InitRun(run, encoder, mae)


def fixed_by(encoder: Backbone, mae: MAE | None) -> dict[str, Any]:
    """The settings that weights decide, by their names in `Pretrain`."""
    heads = f", {encoder.num_heads} heads" if isinstance(encoder, ViT) else ""
    layers = len(encoder.layers())
    nameless = f"none with a name ({encoder.embed_dim} wide, {layers} blocks{heads})"
    fixed: dict[str, Any] = {
        "model": name_of(encoder) or nameless,
        "patch_size": patch_text(encoder.patch),
        "registers": max(0, encoder.num_prefix_tokens - 1),
    }
    if mae is None:
        return fixed
    decoder = mae.decoder.config
    sizes = {"decoder_dim": decoder.dim, "decoder_depth": decoder.depth}
    return fixed | {"decoder": decoder.kind, "decoder_heads": decoder.heads} | sizes


def refuse_others(config: Pretrain, run: str, fixed: dict[str, Any]) -> None:
    """`UserError` for a setting that was changed from its default to something else than the
    weights have."""
    values, settings = requested(config), options_of(Pretrain)
    for name, has in fixed.items():
        value, flag = values[name], settings[name].flag
        if value in (settings[name].default, has):
            continue
        otherwise = ", or add --new-decoder" if name.startswith("decoder") else ""
        raise UserError(f"{flag} {value}, but that of {run} is {has}: leave {flag} out{otherwise}")


def name_of(encoder: Backbone) -> str | None:
    """The name of the encoder's size, if it has one."""
    if type(encoder) is not ViT or encoder.mlp_ratio != 4:
        return None
    own = {"embed_dim": encoder.embed_dim, "depth": encoder.depth, "num_heads": encoder.num_heads}
    return next((name for name, size in SIZES.items() if size == own), None)


def check_names(config: Pretrain) -> None:
    """Raises UserError for a masking, target, decoder or loss that there is not, a plugin's
    included."""
    masking(config.masking.masking)
    split_target(config.masking.target)
    choose(DECODERS, config.model.decoder, "decoder")
    choose(LOSSES, config.masking.loss_on, "loss")
    if config.model.image_size is not None and config.model.patch_size is not None:
        grid_of(parse_size(config.model.image_size), as_size(parse_patch(config.model.patch_size)))


def build_model(config: ResolvedPretrain, found: Scan, init_run: InitRun | None) -> tuple[MAE, str]:
    """The model before its first step, and where it comes from in words. What is new has the
    weights of the seed."""
    normalize, channels = config.model.normalize, config.decode.channels
    if normalize == "imagenet" and channels != 3:
        raise UserError(
            f"--normalize imagenet needs 3 channels, not {channels}: use --normalize data"
        )
    if normalize == "imagenet" and found.scaling is not None:
        raise UserError("--normalize imagenet is for 8-bit pixels: use --normalize data")
    statistics = {
        "data": (found.mean, found.std, found.scaling),
        "imagenet": (*IMAGENET, None),
    }
    if init_run is not None:
        own = init_run.encoder
        statistics["run"] = (own.mean, own.std, own.scaling)
    mean, std, scaling = statistics[normalize]
    asked = config.model.scale
    if normalize == "run" and asked != ("none",) and found.scaling != scaling:
        kind = "none" if scaling is None else scaling.words()
        raise UserError(
            f"--scale {' '.join(asked)}: that of the run of --from is {kind}: leave it out, or use "
            "--normalize data"
        )
    size = parse_size(config.model.image_size)
    with seeded(config.optim.seed):
        if init_run is not None:
            return warm_start(config, init_run, size, mean, std, scaling)
        model = config.model
        assert model.model is not None  # only encoders that exist already have no name
        patch = parse_patch(model.patch_size)
        sizes = {"image_size": size, "patch_size": patch, "channels": channels}
        # Only if there are any: an encoder of another kind need not know of registers.
        registers = {"registers": model.registers} if model.registers else {}
        pixels = {"mean": mean, "std": std, **({"scaling": scaling} if scaling else {})}
        described = {**sizes, **size_of(model.model), **registers, **pixels}
        return with_new_decoder(config, build_encoder(described)), "from scratch"


def described_target(text: str) -> str | dict[str, Any]:
    """A target as `MAE` takes it, from its flag; reads the config.json of the run it is made of.

    Raises:
        UserError: that run is of another kind, or there is none.
    """
    name, run = split_target(text)
    if run is None:
        return name
    config, cls = read_any_config(run), TARGETS[name]
    kind = kind_of(config)
    if kind not in cls.run_kinds:
        raise UserError(
            f"--target {text}: {run} holds {WORDS.get(kind, f'a {kind}')}: name {cls.run_words}"
        )
    return {"name": name, "model": config["model"]}


WORDS = {"mae": "an encoder and a decoder", "encoder": "an encoder", "classifier": "a classifier"}


def load_target(model: MAE, text: str) -> None:
    """Loads the weights of the run that a target is made of, if it is."""
    _, run = split_target(text)
    if run is not None:
        weights = model.target.network_weights(read_weights(run))
        load_weights(model.target.network, weights, run)


def with_new_decoder(
    config: ResolvedPretrain, encoder: Backbone, decoder: DecoderConfig | None = None
) -> MAE:
    """The encoder with a new decoder, by default that of the settings."""
    model, masked = config.model, config.masking
    sizes = (model.decoder_dim, model.decoder_depth, model.decoder_heads)
    decoder = decoder or decoder_config(encoder.embed_dim, model.decoder, *sizes)
    target = described_target(masked.target)
    mae = MAE(encoder, decoder, target, masked.loss_on, masked.encode_all)
    if isinstance(mae.target, Tokens) and mae.target.network.config.floats != bool(encoder.scaling):
        raise UserError(
            f"--target {masked.target}: that tokenizer was trained on pixels of another type"
        )
    if isinstance(mae.target, Tokens) and mae.target.network.scaling != encoder.scaling:
        own, ours = (
            one.words() for one in (mae.target.network.scaling, encoder.scaling) if one is not None
        )
        raise UserError(
            f"--target {masked.target}: that tokenizer has --scale {own}, the model {ours}: use "
            "the same for both, on the same images"
        )
    load_target(mae, masked.target)
    return mae


def warm_start(
    config: ResolvedPretrain,
    init_run: InitRun,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scaling: Scaling | None = None,
) -> tuple[MAE, str]:
    """The model with the weights of another run, made to fit these images; what was changed in
    words."""
    encoder = init_run.encoder
    notes: list[str] = []
    if encoder.restore_norm():
        notes.append("new last norm (the classifier's was its own)")
    if size != encoder.image_size:
        old = "x".join(map(str, encoder.grid))
        encoder.resize(size)
        notes.append(f"positions resized from {old} to {'x'.join(map(str, encoder.grid))}")
    if len(mean) != encoder.channels:
        notes.append(f"patch weights of {encoder.channels} channels averaged to {len(mean)}")
    encoder.adapt(len(mean), mean, std, *([scaling] if scaling else []))
    parent = init_run.mae
    if parent is None:
        origin = f"{init_run.run}: encoder, with a new decoder"
        return with_new_decoder(config, encoder), "; ".join([origin, *notes])
    model = with_new_decoder(config, encoder, parent.decoder.config)
    keeps, encode_all = carries_target(parent, model), config.masking.encode_all
    if not keeps or model.target_name != parent.target_name:
        layer = "its layer keeps its weights" if keeps else "a new layer"
        notes.append(f"target {config.masking.target}, was {parent.target_name} ({layer})")
    if encode_all != parent.encode_all:
        now, was = ("encoder", "decoder") if encode_all else ("decoder", "encoder")
        notes.append(f"mask tokens in the {now}, were in the {was} (a new one)")
    carry_decoder(parent, model)
    return model, "; ".join([f"{init_run.run}: encoder and decoder", *notes])


def carries_target(old: MAE, new: MAE) -> bool:
    """Whether predictions of the two mean the same, so that the last layer keeps its weights."""
    if isinstance(old.target, Pixels) and isinstance(new.target, Pixels):
        return True  # normalised or not
    one, other = old.target.state_dict(), new.target.state_dict()
    same = {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in other.items()}
    if not same or old.target_name != new.target_name:
        return False
    if new.target.needs_fit or new.target.follows_encoder:
        return True
    return all(torch.equal(one[name], other[name]) for name in one)


def carry_decoder(old: MAE, new: MAE) -> None:
    """Copies all weights of `old` but the encoder's to `new`.

    Fixed positions of another grid, the last layer and the state of another kind of target, and
    parts that `old` did not have (such as a statistics head) remain as they are in `new`.
    """
    own = new.state_dict()
    skipped: tuple[str, ...] = ("encoder.",)
    if old.decoder.grid != new.decoder.grid:
        skipped += ("decoder.pos_embed",)
    if not carries_target(old, new):
        skipped += ("decoder.pred.", "target.")
    weights = {n: w for n, w in old.state_dict().items() if n in own and not n.startswith(skipped)}
    if carries_target(old, new) and old.target.width != new.target.width:
        for name in ("decoder.pred.weight", "decoder.pred.bias"):
            weights[name] = average_channels(weights[name], new.encoder.patch, new.encoder.channels)
    new.load_state_dict(own | weights)


def average_channels(rows: Tensor, patch: Size, channels: int) -> Tensor:
    """The rows of a layer that predicts pixels (row, column, channel), for other channels: each new
    channel gets the mean of the old ones, since a grey image is the mean of the colours."""
    cut = rows.unflatten(0, (math.prod(patch), -1)).mean(1)
    return torch.repeat_interleave(cut, channels, dim=0)


def fit_target(model: MAE, batches: Batches, world: World) -> None:
    """Fits a target that needs it, on the main process; all get the same state."""
    if not model.target.needs_fit:
        return

    def fit() -> dict[str, Tensor]:
        patches = sample_patches(model.encoder, batches)
        model.target.fit(patches)
        logger.info(f"target {model.target_name}: fitted on {len(patches):,} patches")
        return model.target.state_dict()

    model.target.load_state_dict(world.on_main(fit))


def sample_patches(encoder: Backbone, batches: Batches) -> Float[Tensor, "n P"]:
    """Patches, drawn by the seed, of up to 2000 evenly spaced images: centre crops, normalised."""
    count = len(batches.source)
    patches = math.prod(encoder.grid)
    images = min(FIT_IMAGES, count)
    values = math.prod(encoder.patch) * encoder.channels
    each = min(patches, max(1, FIT_VALUES // (images * values)))
    samples = torch.arange(images) * count // images
    ids = noise(batches.seed, torch.zeros_like(samples), samples, patches).argsort(dim=1)[:, :each]
    crop = CenterCropResize(encoder.image_size)
    rows = []
    for sample, some in zip(samples.tolist(), ids):
        pixels, _ = crop(batches.read(sample, [])[1])
        rows.append(patchify(encoder.normalize(pixels[None]), encoder.patch, some[None])[0])
    return torch.cat(rows)
