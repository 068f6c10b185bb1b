"""A masking of your own, compared with random masking by the k-NN accuracy of the features.

python examples/custom_masking.py              # minutes on two CPU cores
python examples/custom_masking.py --quick      # one epoch each: seconds

The same file on the command line:

mae pretrain digits --plugin examples/custom_masking.py --masking stripes
"""

import argparse

import torch

import torchmae
from torchmae.models.masking import mask_from_order
from torchmae.presets.pretrain import demo


def stripes(noise: torch.Tensor, grid: tuple[int, ...], ratio: float) -> torchmae.Mask:
    """Keeps whole columns of patches visible, chosen per image by the noise.

    Args:
        noise: random integers, int64 [B, N], from (seed, epoch, sample).
        grid: rows and columns of patches.
        ratio: share of masked patches.
    """
    columns = grid[1]
    column = torch.arange(noise.shape[1], device=noise.device) % columns
    rank = noise[:, :columns].argsort(dim=1).argsort(dim=1)  # a random rank for each column
    return mask_from_order(rank[:, column].argsort(dim=1, stable=True), ratio)


torchmae.MASKINGS["stripes"] = stripes


def main() -> None:
    """Trains with both maskings and prints the accuracy of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/maskings", help="folder for the runs")
    parser.add_argument("--quick", action="store_true", help="one epoch each")
    arguments = parser.parse_args()
    for masking in ("random", "stripes"):
        recipe = {**demo(), "out": f"{arguments.out}/{masking}", "masking": masking}
        recipe["plugin"] = __file__  # stored in the run: mae reconstruct knows the masking too
        if arguments.quick:
            recipe |= {"data": "digits?part=test", "epochs": 1}
        run = torchmae.pretrain(**recipe, workers=0)
        accuracies = torchmae.knn(run, recipe["data"])["knn"]
        print(f"{masking}: k-NN {accuracies['features']['accuracy']:.1%}")


if __name__ == "__main__":
    main()
