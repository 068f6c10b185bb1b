"""Encoders of timm by name: `timm:NAME`, as an encoder or as a run folder that later verbs read."""

import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from torchmae import manifest
from torchmae.data.config import DecodeOptions, decode_as_run
from torchmae.data.transforms import CenterCropResize
from torchmae.data.view import AsSeen, center_crop
from torchmae.disk import sha256, whole_folder
from torchmae.errors import UserError, library, nearest, printable
from torchmae.interop.foreign import read_file
from torchmae.models import weights
from torchmae.models.detection.detector import Detector
from torchmae.models.encoders import Backbone
from torchmae.models.encoders.timm import TimmEncoder, check_name
from torchmae.models.segmentation.segmenter import Segmenter
from torchmae.models.vit import PixelInput
from torchmae.models.weights import load_weights, seeded
from torchmae.runfolder import MODEL, kind_of, read_config, write_config
from torchmae.settings.options import parse_size, size_text

logger = logging.getLogger(__name__)

PREFIX = "timm:"
HUB_SECONDS = 5.0  # in which a hub of models has to answer
OPTIONS = ("checkpoint", "random", "image_size")
RUNS = Path("runs")  # where their run folders go
# What is loaded as a whole, by `kind_of`.
WHOLE: dict[str, Any] = {
    "segmenter": weights.load_segmenter,
    "detector": weights.load_detector,
}
# What a file may hold beside an encoder: heads, and parts of pre-training.
BESIDE = ("head", "fc_norm", "attn_pool", "lm_head", "mask_token", "decoder", "mim_")


@dataclass(frozen=True)
class Named:
    """`timm:NAME?checkpoint=FILE&image_size=224`, in parts.

    Args:
        text: as it was written.
        name: the model's.
        checkpoint: a file of weights; None with neither it nor `random`: timm's own weights, which
            timm downloads unless it has them already.
        random: the seed of new weights.
        image_size: in pixels; None: the model's own.
    """

    text: str
    name: str
    checkpoint: str | None = None
    random: int | None = None
    image_size: tuple[int, int] | None = None

    @property
    def folder(self) -> Path:
        """The run folder that it becomes."""
        parts = [f"timm-{self.name}"]
        parts += [Path(self.checkpoint).stem] if self.checkpoint else []
        parts += [f"random-{self.random}"] if self.random is not None else []
        parts += [size_text(self.image_size)] if self.image_size else []
        return RUNS / "-".join(parts)

    @property
    def origin(self) -> str:
        """Where its weights are from, in words."""
        if self.checkpoint:
            return f"weights of {self.checkpoint}"
        if self.random is not None:
            return f"random weights of seed {self.random}"
        return "timm's pre-trained weights, downloaded unless they are in its cache"


def parse(text: str) -> Named:
    """The parts of `timm:NAME?...`.

    Raises:
        UserError: an option that there is not, a value that is none, or a model that cannot be an
            encoder; before anything is read or downloaded.
    """
    name, _, query = text.removeprefix(PREFIX).partition("?")
    values: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        option, _, value = part.partition("=")
        if option not in OPTIONS or not value:
            near = nearest(option, OPTIONS)
            hint = f" Did you mean {near}?" if near else ""
            raise UserError(
                f"{text}: after ? come checkpoint=FILE, random=SEED, image_size=SIZE, joined by "
                f"&, not {part}.{hint}"
            )
        values[option] = value
    if {"checkpoint", "random"} <= values.keys():
        raise UserError(f"{text}: weights are those of checkpoint, or random: leave one out")
    seed = values.get("random")
    if seed is not None and not (seed.isascii() and seed.isdigit() and int(seed) < 1 << 62):
        raise UserError(f"{text}: random={seed} is no seed: a whole number such as 0")
    if "checkpoint" in values and not Path(values["checkpoint"]).is_file():
        raise UserError(f"{text}: {values['checkpoint']} does not exist")
    check_name(name)
    size = parse_size(values["image_size"]) if "image_size" in values else None
    return Named(text, name, values.get("checkpoint"), None if seed is None else int(seed), size)


def read(named: Named) -> TimmEncoder:
    """The encoder in eval mode on the CPU.

    Raises:
        UserError: its weights cannot be downloaded or read, or do not fit.
    """
    with seeded(named.random or 0):
        encoder = TimmEncoder(named.name, named.image_size)
    share = encoder.model.pretrained_cfg.get("crop_pct") or 1.0
    crop = CenterCropResize(encoder.image_size, share)
    encoder.seen = AsSeen(DecodeOptions(dtype="uint8"), crop)
    if named.random is not None:
        return encoder.eval()
    found = read_file(Path(named.checkpoint))[0] if named.checkpoint else download(named.name)
    plain = fitted(encoder.model, found, named)
    own = encoder.model.state_dict()
    beside = [n for n in plain if n not in own and n.startswith(BESIDE)]
    if beside:
        logger.info(f"{named.text}: {len(beside)} tensors of a head or decoder are left out")
    kept = {n: w for n, w in plain.items() if n not in beside}
    load_weights(encoder.model, kept, named.text)
    return encoder.eval()


def download(name: str) -> dict[str, Tensor]:
    """The published weights of a model, as timm loads them: from its cache or the network."""
    timm = library("timm", "timm")
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # without a network it warns a dozen times before it fails
    try:
        check_hub(getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None))
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise UserError(
            f"timm's weights of {name} could not be had ({reason}). Without a network: "
            f"{PREFIX}{name}?checkpoint=FILE reads a local file"
        ) from error
    finally:
        hub.setLevel(level)
    published: dict[str, Tensor] = model.state_dict()
    return published


def check_hub(repository: str | None) -> None:
    """Raises an error within seconds where a repository is in no cache and its hub does not answer:
    the hub's own client tries for a minute."""
    if repository is None:  # the weights are a file elsewhere
        return
    hub = library("huggingface_hub", "timm")
    try:
        hub.snapshot_download(repository, local_files_only=True)
    except Exception:  # not in the cache; through the client's session, which knows of proxies
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=HUB_SECONDS)


def fitted(model: nn.Module, found: dict[str, Tensor], named: Named) -> dict[str, Tensor]:
    """Weights with timm's names, positions resized: as timm's own filter for files of the authors
    makes them."""
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        made: dict[str, Tensor] = convert(dict(found), model) if convert else found
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of {named.text} are not those of {named.name} ({reason})"
        ) from error
    return made


def load(run: str | os.PathLike[str], verify: bool = True) -> Backbone | Segmenter | Detector:
    """The segmenter or the detector of a run folder, of any other its encoder, or an encoder of
    timm, in eval mode on the CPU.

    Args:
        run: the folder; or `timm:NAME` (which downloads timm's weights unless its cache has them),
            `timm:NAME?checkpoint=FILE` or `timm:NAME?random=SEED`.
        verify: False for a run that was edited on purpose: files are not compared with its
            manifest.

    Returns:
        Of a segmenter or a detector the whole: `predict(images)` takes uint8 images of any size,
        see `load_segmenter` and `load_detector`, and `encoder` is its encoder. Else as
        `torchmae.models.weights.load`: `encoder(encoder.normalize(images))` of uint8 images of
        `encoder.image_size` returns tokens `[B, num_prefix_tokens + N, D]`, and
        `encoder.features(images, pool="mean")` of images of any size, such as a list of PIL images
        or an array [N, H, W, C], features `[N, F]` as `mae embed` writes them.

    Raises:
        UserError: not a run folder, no weights yet, weights that do not fit or are not finite, or
            a file is not what was written; no such model of timm, or no network.
    """
    if os.fspath(run).startswith(PREFIX):
        return load_encoder(run)
    with manifest.verification(verify):
        kind = kind_of(read_config(run))
    if kind not in WHOLE:
        return load_encoder(run, verify)
    model = WHOLE[kind](run, verify=verify)
    model.encoder = seeing(model.encoder, run)
    return model


def load_encoder(run: str | os.PathLike[str], verify: bool = True) -> Backbone:
    """The encoder of any run folder, or an encoder of timm, which knows how the run sees images.

    Arguments and errors are those of `load`.
    """
    text = os.fspath(run)
    if text.startswith(PREFIX):
        return read(parse(text))
    encoder = weights.load(run, verify=verify)
    with manifest.verification(verify):
        return seeing(encoder, run)


def seeing(encoder: Backbone, run: str | os.PathLike[str]) -> Backbone:
    """The encoder, whose `features` take images of any size as its run's verbs do."""
    if isinstance(encoder, PixelInput):
        crop = center_crop(run, encoder.image_size)
        encoder.seen = AsSeen(decode_as_run(os.fspath(run)), crop)
    return encoder


def run_folder(text: str) -> Path:
    """The run folder of `timm:NAME`, below `runs/`: made now, or the one that was made before.

    Raises:
        UserError: as `load`, or the folder is of other weights.
    """
    named = parse(text)
    out = named.folder
    digest = sha256(Path(named.checkpoint)) if named.checkpoint else None
    if out.exists():
        before = read_config(out)["config"]
        if before.get("sha256") != digest or not str(before.get("source")).startswith(PREFIX):
            raise UserError(
                f"{out} is not {text}, as its weights are others ({before.get('source')}): move "
                "it away"
            )
        logger.info(f"{text}: {out}, made before")
        return out
    logger.info(f"{text}: {named.origin}")
    encoder = read(named)
    timm = library("timm", "timm")
    settings = {
        "source": text,
        "sha256": digest,
        "timm": timm.__version__,
        "image_size": size_text(encoder.image_size),
        "channels": encoder.channels,
        "max_megapixels": 100.0,
        "dtype": "uint8",
        "crop_pct": encoder.model.pretrained_cfg.get("crop_pct") or 1.0,
    }
    RUNS.mkdir(exist_ok=True)
    # Several processes (torchrun) may make it at once: the first one's stays.
    with TemporaryDirectory(prefix=".timm-", dir=RUNS) as place:
        with whole_folder(Path(place) / "run") as folder:
            named_weights = {f"encoder.{n}": w for n, w in encoder.state_dict().items()}
            save_file(named_weights, folder / MODEL)
            write_config(folder, "import", settings, None, {"encoder": encoder.config()})
        with suppress(OSError):
            os.rename(Path(place) / "run", out)
    logger.info(f"  {out}: {encoder.embed_dim} wide, {len(encoder.layers())} blocks")
    return out
