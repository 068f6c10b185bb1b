"""CIFAR-10 kept as JPEGs of quality 75 (lossy: write "CIFAR-10-JPEG75" beside any figure): ViT-Tiny with patches of 2 px, 300
epochs of pre-training, 100 of fine-tuning, and its partner from scratch. For a GPU; not run in full by this project yet.

    python bench/cifar.py cifar10_jpeg75.npz --out runs/cifar

The file holds {train,test}_jpeg (uint8, files end to end), _offsets (n + 1), _labels and class_names. To beat: 84.4 % (a fork
of IcarusWizard/MAE with this architecture and length, its best test epoch, one seed). Last and best epoch are both printed.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np

import torchmae
from torchmae.data.decode import decode
from torchmae.tasks.finetune.config import Finetune
from torchmae.tasks.finetune.run import run as finetune


def unpack(source: Path, out: Path, part: str, limit: int | None) -> Path:
    """One part as an array with the names of the classes, which `mae` reads."""
    path = out / f"{part}.npz"
    if path.exists():
        return path
    stored = np.load(source)
    names, offsets = stored["class_names"], stored[f"{part}_offsets"]
    labels, data = stored[f"{part}_labels"][:limit], stored[f"{part}_jpeg"]
    images = [decode(data[a:b].tobytes()) for a, b in pairwise(offsets[: len(labels) + 1])]
    np.savez(
        path, images=np.stack(images), labels=np.array([str(names[label]) for label in labels])
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar"))
    parser.add_argument("--epochs", type=float, default=300)
    parser.add_argument("--finetune-epochs", type=float, default=100)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument(
        "--limit", type=int, help="only so many images of each part, to try the script"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    train, test = (
        str(unpack(given.source, given.out, part, given.limit)) for part in ("train", "test")
    )
    run = torchmae.pretrain(
        train,
        out=given.out / "pretrained",
        model="vit_tiny",
        image_size=32,
        patch_size=2,
        epochs=given.epochs,
        batch_size=given.batch_size,
        decoder_dim=192,
        decoder_depth=4,
        decoder_heads=3,
    )
    for name, start in (("finetuned", str(run)), ("scratch", "none")):
        like = {"model": str(run)} if start == "none" else {}
        length = {"epochs": given.finetune_epochs, "batch_size": given.batch_size // 4}
        finetune(
            Finetune(
                start,
                train,
                out=str(given.out / name),
                val=test,
                crop_scale=(0.4, 1.0),
                **length,
                **like,
            )
        )
    for name in ("finetuned", "scratch"):
        found = json.loads((given.out / name / "results.json").read_text())["validation"]
        print(
            f"{name}: last epoch {found['last']['top1']:.2%}, best epoch {found['best']['top1']:.2%} (CIFAR-10-JPEG75)"
        )


if __name__ == "__main__":
    main()
