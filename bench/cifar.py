"""CIFAR-10 as JPEGs of quality 75 (lossy: write "CIFAR-10-JPEG75" beside any figure), on a GPU.

ViT-Tiny with patches of 2 px: 300 epochs of pre-training, 100 of fine-tuning, and the same encoder
from scratch. Not run in full by this project yet.

    python bench/cifar.py cifar10_jpeg75.npz --out runs/cifar

The file holds {train,test}_jpeg (uint8, concatenated files), _offsets (n + 1), _labels and
class_names. To beat: 84.4 % (a fork of IcarusWizard/MAE with this architecture and length, its best
test epoch, one seed). Last and best epoch are both printed.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np

import torchmae
from torchmae.data.decode import decode


def unpack(source: Path, out: Path, part: str, limit: int | None) -> Path:
    """One part as an .npz of images and class names, which `mae` reads."""
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
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, test = (
        str(unpack(args.source, args.out, part, args.limit)) for part in ("train", "test")
    )
    run = torchmae.pretrain(
        train,
        out=args.out / "pretrained",
        model="vit_tiny",
        image_size=32,
        patch_size=2,
        epochs=args.epochs,
        batch_size=args.batch_size,
        decoder_dim=192,
        decoder_depth=4,
        decoder_heads=3,
    )
    options = dict(
        val=test,
        crop_scale=(0.4, 1.0),
        epochs=args.finetune_epochs,
        batch_size=args.batch_size // 4,
    )
    runs = {
        "finetuned": torchmae.finetune(run.path, train, out=args.out / "finetuned", **options),
        "scratch": torchmae.finetune(
            "none", train, model=run.path, out=args.out / "scratch", **options
        ),
    }
    for name, made in runs.items():
        scores = made.results[-1]["results"]
        last, best = scores["last"]["top1"], scores["best"]["top1"]
        print(f"{name}: last epoch {last:.2%}, best epoch {best:.2%} (CIFAR-10-JPEG75)")


if __name__ == "__main__":
    main()
