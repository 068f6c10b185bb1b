"""What is pre-training worth with few labels? Digits, fine-tuned on ten labels per class.

The same classifier is trained from scratch, and both are evaluated on digits of other writers.

python examples/finetune_few_labels.py              # minutes on two CPU cores
python examples/finetune_few_labels.py --quick      # too short to learn much: seconds
"""

import argparse
from typing import Any

import torchmae
from torchmae.presets.pretrain import demo

# Flipped or sheared digits are other digits.
MILD: dict[str, Any] = {"flip": False, "crop_scale": (0.6, 1.0), "randaug_magnitude": 0}


def main() -> None:
    """Runs the example; `--help` lists its options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--labels-per-class", type=int, default=10)
    parser.add_argument("--out", default="runs/few-labels", help="folder for the runs")
    parser.add_argument("--quick", action="store_true", help="one epoch each")
    arguments = parser.parse_args()
    out = arguments.out
    recipe = {
        **demo(),
        "data": "digits?part=test" if arguments.quick else "digits?part=train",
        "out": f"{out}/pretrained",
        "epochs": 1 if arguments.quick else 100,
    }
    run = torchmae.pretrain(**recipe, workers=0)
    for name, start in {"pre-trained": run, "from scratch": "none"}.items():
        classifier = torchmae.finetune(
            start,
            "digits?part=train",
            val="digits?part=test",
            out=f"{out}/{name.replace(' ', '-')}",
            model=run.path if start == "none" else None,  # the same architecture
            labels_per_class=arguments.labels_per_class,
            epochs=1 if arguments.quick else None,
            workers=0,
            **MILD,
        )
        scores = torchmae.evaluate(classifier, "digits?part=test")
        interval = f"{scores['low']:.1%} to {scores['high']:.1%}"
        print(f"{name}: {scores['top1']:.1%} (95 % interval {interval})")


if __name__ == "__main__":
    main()
