"""Whether predictions are better than others on the same images: paired intervals, and words."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Int64
from torch import Tensor

from torchmae.eval.classification import accuracy
from torchmae.eval.intervals import Difference, mean_interval

# What an interval of differences says of its subject, beside that which it is compared with.
WORDS = {"above": "better than", "unclear": "not clearly better than", "below": "worse than"}


class Verdict(NamedTuple):
    """How the first of several predictions compares with the others.

    `accuracies` are what `accuracy` returns, by name; `differences` are those of the first to each
    other, by its name; `words` is a sentence.
    """

    accuracies: dict[str, dict[str, float]]
    differences: dict[str, Difference]
    words: str

    def text(self, remarks: Mapping[str, str]) -> str:
        """A line for each accuracy, with its remark and what the first has above it; the words."""
        lines = []
        for name, found in self.accuracies.items():
            line = accuracy_line(name, found)
            if name in self.differences:
                mean, low, high = (f"{100 * bound:+.1f}" for bound in self.differences[name])
                line += f"; {next(iter(self.accuracies))} {mean} ({low} to {high})"
            lines.append(line + remarks.get(name, ""))
        return "\n".join([*lines, f"Verdict: {self.words}."])

    def results(self) -> dict[str, Any]:
        """The differences and the words, for results.json."""
        found = {name: one._asdict() for name, one in self.differences.items()}
        return {"differences": found, "verdict": self.words}


def judge(
    guesses: Mapping[str, Int64[Tensor, " N"]], truth: Int64[Tensor, " N"], subject: str
) -> Verdict:
    """Compares predicted classes with others of the same images.

    The images are the pairs: one that both have right, or both wrong, tells nothing.

    Args:
        guesses: by name; the first are compared with the others.
        truth: the true classes.
        subject: the first in words, such as "the features are".
    """
    first, *others = guesses
    right = {name: (found == truth).double() for name, found in guesses.items()}
    differences = {}
    if len(truth) > 1:
        differences = {
            name: mean_interval((right[first] - right[name]).tolist()) for name in others
        }
    words = in_words(by_sign(differences))
    return Verdict(
        {name: accuracy(found, truth) for name, found in guesses.items()},
        differences,
        f"{subject} {words} (95 % intervals of the differences on the same {len(truth)} images)",
    )


def accuracy_line(name: str, found: Mapping[str, float]) -> str:
    """A line of text for an accuracy with its interval (see `torchmae.eval.classification`)."""
    interval = f"95 % interval {found['low']:.1%} to {found['high']:.1%}"
    return f"  {name:<18} {found['accuracy']:6.1%}  ({interval})"


def by_sign(differences: Mapping[str, Difference]) -> dict[str, list[str]]:
    """The names of the differences that are "above" zero with their whole interval, "unclear", and
    "below"."""
    found: dict[str, list[str]] = {sign: [] for sign in WORDS}
    for name, difference in differences.items():
        found[difference.sign].append(name)
    return found


def in_words(signs: Mapping[str, list[str]]) -> str:
    """What `by_sign` found: "better than A, B and C; not clearly better than D"."""
    return "; ".join(f"{WORDS[sign]} {listed(names)}" for sign, names in signs.items() if names)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "A, B and C"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
