"""`mae doctor` without a run: whether a small training works here, and images are decoded
exactly."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from torchmae.data.decode import decode
from torchmae.models.decoders import DecoderConfig
from torchmae.models.mae import MAE
from torchmae.models.masking import masking, noise
from torchmae.models.vit import ViT
from torchmae.models.weights import seeded
from torchmae.runfolder import MODEL
from torchmae.settings.options import from_python
from torchmae.tasks.doctor.line import Line, judged
from torchmae.tasks.pretrain import run as pretrain
from torchmae.tasks.pretrain.config import Pretrain

STEPS, LR = 20, 2e-3
SIDE, COUNT = 32, 16


def training(device: torch.device) -> Iterator[Line]:
    """The lines about a small model."""
    yield decoders()
    model = small_model().to(device)
    yield positions(model)
    yield overfit(model, device)
    yield resuming(device)


def pictures() -> np.ndarray:
    """Soft gradients of many colors, uint8 [N, H, W, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 3, 3), dtype=np.uint8)
    size = (SIDE, SIDE)
    soft = [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(one) for one in soft])


def decoders() -> Line:
    """Whether files become the pixels that Pillow makes of them."""
    wrong = []
    image = Image.fromarray(np.concatenate(list(pictures()[:4]), axis=1))
    kinds = {
        "JPEG": {},
        "progressive JPEG": {"progressive": True},
        "PNG": {},
        "BMP": {},
        "TIFF": {},
    }
    for name, options in kinds.items():
        for mode in ("RGB", "L"):
            out = io.BytesIO()
            image.convert(mode).save(out, name.rpartition(" ")[2], **options)
            plain = np.asarray(Image.open(out).convert("RGB"))
            if not np.array_equal(decode(out.getvalue()), plain):
                wrong.append(f"{name} ({mode})")
    remedy = "install the versions of pillow and simplejpeg again"
    about = f"not Pillow's pixels: {', '.join(wrong)}" if wrong else "as Pillow, 10 kinds"
    return judged("decoding", not wrong, about, remedy)


def small_model() -> MAE:
    """An MAE that trains in seconds."""
    with seeded(0):
        encoder = ViT(image_size=(SIDE, SIDE), patch_size=8, embed_dim=64, depth=2, num_heads=2)
        return MAE(encoder, DecoderConfig("transformer", 32, 1, 2), "norm-pixels")


def positions(model: MAE) -> Line:
    """Whether each patch has a position of its own."""
    rows = model.encoder.get_parameter("pos_embed")  # type: ignore[attr-defined]
    return position_line(rows[0], "this installation of torchmae is damaged")


def position_line(rows: torch.Tensor, remedy: str) -> Line:
    """The line about position embeddings [N, D]."""
    rows = rows.detach().float().cpu()
    distinct = len(rows.unique(dim=0)) == len(rows)
    right = bool(rows.isfinite().all()) and bool(rows.abs().max() > 1e-3) and distinct
    about = "one for each patch" if right else "they are zero, not finite, or the same"
    return judged("positions", right, about, remedy)


def overfit(model: MAE, device: torch.device) -> Line:
    """Whether 20 steps on 16 images fall below what means would reach."""
    images = torch.from_numpy(pictures()).permute(0, 3, 1, 2).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    sample = torch.arange(COUNT)
    floats = model.encoder.normalize(images)
    scores = noise(0, torch.zeros_like(sample), sample, int(np.prod(model.encoder.grid)))
    mask = masking("random")(scores.to(device), model.encoder.grid, 0.5)
    losses = []
    for _ in range(STEPS):
        output = model(floats, mask)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    trivial = model.target.trivial_losses(floats, mask, floats)
    least = min(float(value) for value in trivial.values())
    about = f"{STEPS} steps from {losses[0]:.3f} to {losses[-1]:.3f}, means reach {least:.3f}"
    return judged("learning", losses[-1] < least, about, "it does not learn here: try --device cpu")


def resuming(device: torch.device) -> Line:
    """Whether a run that is saved, ended and resumed has the bits of one that went through."""
    with TemporaryDirectory(prefix="mae-doctor-") as place, quiet():
        data = Path(place) / "images.npy"
        np.save(data, pictures())
        small = dict(model="vit_micro", image_size=SIDE, patch_size=8, batch_size=8, workers=0)
        usual = dict(**small, decoder_dim=32, decoder_depth=1, schedule="wsd", warmup_epochs=1.0)

        def train(name: str, epochs: int) -> bytes:
            more = dict(out=str(Path(place) / name), epochs=epochs, device=str(device))
            pretrain.run(from_python(Pretrain, "pretrain", (str(data),), {**usual, **more}), True)
            return (Path(place) / name / MODEL).read_bytes()

        train("resumed", 3)
        same = train("resumed", 6) == train("whole", 6)
    about = "bit for bit as without a stop" if same else "other weights than without a stop"
    return judged("resuming", same, about, "results here cannot be repeated exactly")


@contextmanager
def quiet() -> Iterator[None]:
    """Without messages below a warning."""
    logger = logging.getLogger("torchmae")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
