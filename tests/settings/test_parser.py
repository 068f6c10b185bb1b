"""The command line of a config class: flags in groups, defaults in words, mistakes in a line."""

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from torchmae.errors import UserError
from torchmae.presets import PRESETS
from torchmae.settings.options import REQUIRED, argument, build, flatten, option
from torchmae.settings.parser import parse, parser_of
from torchmae.verbs import VERBS, load


@dataclass(frozen=True)
class Config:
    """Do something.

    In two paragraphs.
    """

    GROUP: ClassVar[str] = "things"

    data: str = argument("what to read", "DATA")
    out: str = option(REQUIRED, "Where to write.", metavar="FILE")
    epochs: float | None = option(None, "Passes.", otherwise="as many as fit")
    share: float = option(0.75, "A share of 100 %.")
    scale: tuple[float, float] = option((0.2, 1.0), "Two shares.")
    seeds: tuple[int, ...] = option((), "Numbers.", otherwise="one")
    flip: bool = option(True, "Mirror half of them.")
    loud: bool = option(False, "Say more.")


def parsed(*words, presets=None):
    return parse(Config, "verb", words, presets or {})


def test_values_have_their_types():
    config = parsed(
        *"x --out y --epochs 3 --share 1 --scale 0.5 1 --seeds 1 2 --no-flip --loud".split()
    )
    assert config == Config("x", "y", 3.0, 1.0, (0.5, 1.0), (1, 2), False, True)
    assert [type(seed) for seed in config.seeds] == [int, int]


def test_without_flags_the_defaults_hold():
    assert parsed("x", "--out", "y") == Config("x", "y")


@pytest.mark.parametrize(
    "words, message",
    [
        ("--out y", "DATA is missing: mae verb --help says what goes there"),
        ("x", "--out is missing"),
        ("x --out y --epoch 3", "--epoch is not a flag of mae verb. Did you mean --epochs?"),
        ("x --out y --epochs a", "--epochs: 'a' is not a number"),
        ("x --out y --seeds 1.5", "--seeds: '1.5' is not a whole number"),
        ("x --out y --epochs", "--epochs: expected one argument"),
        ("x --out y --scale 1", "--scale: expected 2 arguments"),
        ("x z --out y", "z is one argument too many"),
        ("x --out y --preset p", "this verb has no presets"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UserError) as raised:
        parsed(*words.split())
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_help_has_groups_and_defaults_in_words(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "usage: mae verb DATA --out ... [flags]" in text
    assert "\nthings:\n" in text
    assert "\nDo something.\n\nIn two paragraphs.\n" in text
    for part in (
        "(default: as many as fit)",
        "A share of 100 %. (default: 0.75)",
        "(default: 0.2 1)",
        "(default: one)",
        "--flip, --no-flip",
        "(default: on)",
    ):
        assert part in text
    assert "None" not in text


def test_a_preset_fills_in_and_flags_win():
    presets = {"quick": lambda: dict(data="digits", epochs=2, flip=False)}
    assert parsed("--out", "y", "--preset", "quick", presets=presets) == Config(
        "digits", "y", 2, flip=False
    )
    config = parsed(*"x --out y --preset=quick --epochs 9 --flip".split(), presets=presets)
    assert config == Config("x", "y", 9.0)
    with pytest.raises(UserError, match="unknown preset 'quik'.*Did you mean quick"):
        parsed(*"x --out y --preset quik".split(), presets=presets)
    with pytest.raises(UserError, match="--preset needs a name: quick"):
        parsed(*"x --out y --preset".split(), presets=presets)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb(verb):
    text = parser_of(load(VERBS[verb].config), verb, PRESETS.get(verb, {})).format_help()
    assert "{None}" not in text
    assert "default: None" not in text
    assert "default: True" not in text
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize("verb, name", [(v, n) for v in PRESETS for n in PRESETS[v]])
def test_every_preset_is_settings_of_its_verb(verb, name):
    config = load(VERBS[verb].config)
    values = PRESETS[verb][name]()
    flat = flatten(build(config, {"data": "x", "run": "y", **values}))
    assert {key: flat[key] for key in values} == values


HEAVY = ("torch", "numpy", "PIL", "matplotlib", "jaxtyping", "tqdm")
LINES = {
    "pretrain --help": 0,
    "finetune --help": 0,
    "compare --help": 0,
    "pretrain photos --epoch 3": 2,
    "pretrain photos --epochs three": 2,
    "knn": 2,
    "pretrian photos": 2,
    "pretrain photos --preset dmo": 2,
}


@pytest.mark.parametrize("line", LINES)
def test_help_and_typing_mistakes_import_nothing_heavy(line):
    """They have to answer within half a second, also where torch takes ten to import."""
    code = f"""
import sys
from torchmae.cli import main
try:
    code = main({line.split()!r})
except SystemExit as ended:
    code = ended.code
print([name for name in {HEAVY!r} if name in sys.modules], code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"[] {LINES[line]}", done.stderr


def test_minutes_win_over_the_epochs_of_a_preset():
    config = load(VERBS["pretrain"].config)
    words = ["--preset", "demo", "--minutes", "0.2"]
    assert parse(config, "pretrain", words, PRESETS["pretrain"]).optim.epochs is None
    assert parse(config, "pretrain", words[:2], PRESETS["pretrain"]).optim.epochs == 24
    words = ["--preset=demo", "--minutes=0.2"]
    assert parse(config, "pretrain", words, PRESETS["pretrain"]).optim.epochs is None


def test_a_flag_that_may_be_repeated():
    config = load(VERBS["pretrain"].config)
    words = ["x", "--plugin", "a.py", "--plugin=b.py"]
    assert parse(config, "pretrain", words, {}).runtime.plugin == ("a.py", "b.py")


@pytest.mark.parametrize(
    "words, scale",
    [
        ([], ("none",)),
        (["--scale", "log"], ("log",)),
        (["--scale", "window", "-1000", "400"], ("window", "-1000", "400")),
    ],
)
def test_a_flag_of_several_values_replaces_its_default(words, scale):
    config = load(VERBS["pretrain"].config)
    assert parse(config, "pretrain", ["x", *words], {}).model.scale == scale
