"""Settings: flat names over composed dataclasses, ranges, and the options of a Python call."""

from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchmae.errors import UserError
from torchmae.settings.options import (
    POSITIVE,
    SHARE,
    ChangeableOptions,
    Range,
    argument,
    build,
    changeable,
    changed,
    check_ranges,
    flatten,
    from_python,
    hidden,
    option,
    options_of,
    parse_size,
    size_text,
)
from torchmae.verbs import VERBS, load


@dataclass(frozen=True)
class Speed(ChangeableOptions):
    """A group that may change."""

    GROUP: ClassVar[str] = "runtime"

    workers: int = option(2, "Helpers.", within=POSITIVE)


@dataclass(frozen=True)
class Shape:
    """A group that may not."""

    GROUP: ClassVar[str] = "model"

    ratio: float = option(0.5, "A share.", within=SHARE)
    size: str | int | None = option(None, "A side.")
    scales: tuple[float, float] = option((0.2, 1.0), "Two numbers.", within=POSITIVE)
    names: tuple[str, ...] = option((), "Words.")
    secret: int = hidden(7)


@dataclass(frozen=True)
class Config:
    """A verb's settings."""

    data: str = argument("what to read", "DATA")
    shape: Shape = Shape(ratio=0.25)
    speed: Speed = Speed()
    loud: bool = option(False, "Say more.")


def test_flatten_and_build_are_inverse():
    config = Config("x", Shape(0.75, 32, (1.0, 2.0), ("a",)), Speed(5), True)
    flat = flatten(config)
    assert flat == {
        "data": "x",
        "ratio": 0.75,
        "size": 32,
        "scales": (1.0, 2.0),
        "names": ("a",),
        "secret": 7,
        "workers": 5,
        "loud": True,
    }
    assert build(Config, flat) == config


def test_a_group_keeps_the_defaults_of_its_verb():
    assert build(Config, {"data": "x"}).shape.ratio == 0.25
    assert options_of(Config)["ratio"].default == 0.25


def test_changed_reaches_into_groups_and_refuses_unknown_names():
    config = changed(Config("x"), ratio=1.0, workers=9)
    assert (config.shape.ratio, config.speed.workers) == (1.0, 9)
    with pytest.raises(TypeError, match="rato"):
        changed(config, rato=1.0)


def test_what_may_change_is_a_matter_of_type():
    assert changeable(Config) == {"workers"}


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Config("x").loud = True  # type: ignore[misc]


def test_two_settings_of_one_name_are_a_mistake_of_ours():
    @dataclass(frozen=True)
    class Twice:
        workers: int = option(1, "Once.")
        speed: Speed = Speed()

    with pytest.raises(TypeError, match="two settings named workers"):
        options_of(Twice)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"ratio": 1.5}, r"--ratio 1.5: must be at most 1"),
        ({"ratio": -0.1}, r"--ratio -0.1: must not be negative"),
        ({"ratio": float("nan")}, r"--ratio nan: must be a finite number"),
        ({"workers": 0}, r"--workers 0: must be more than 0"),
        ({"scales": (1.0, float("inf"))}, r"--scales inf: must be a finite number"),
    ],
)
def test_numbers_out_of_their_range(values, message):
    with pytest.raises(UserError, match=message):
        check_ranges(build(Config, {"data": "x", **values}))


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_range_is_what_it_says(value):
    inside = Range(above=0, at_most=1)
    assert (inside.problem(value) is None) == (0 < value <= 1)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((), {}, "torchmae.verb needs data: what to read"),
        (("x", "y"), {}, "takes data, then options by name, not 2 arguments"),
        (("x",), {"data": "y"}, "is given data twice"),
        (("x",), {"rato": 1}, "unknown option of torchmae.verb: 'rato'.*Did you mean ratio?"),
        (("x",), {"ratio": "much"}, r"ratio='much': must be a number"),
        (("x",), {"workers": 2.5}, r"workers=2.5: must be a whole number"),
        (("x",), {"workers": True}, r"workers=True: must be a whole number"),
        (("x",), {"loud": 1}, r"loud=1: must be True or False"),
        (("x",), {"scales": (1.0,)}, r"scales=\(1.0,\): must be 2 numbers"),
        (("x",), {"names": "a"}, r"names='a': must be a list of texts"),
        (("x",), {"secret": 1}, "unknown option of torchmae.verb: 'secret'"),
    ],
)
def test_mistakes_of_a_python_call(arguments, options, message):
    with pytest.raises(UserError, match=message):
        from_python(Config, "torchmae.verb", arguments, options)


def test_a_python_call_takes_paths_lists_and_whole_numbers_for_floats():
    config = from_python(
        Config, "torchmae.verb", (Path("a/b"),), {"ratio": 1, "names": [Path("c"), "d"]}
    )
    assert (config.data, config.shape.ratio, config.shape.names) == ("a/b", 1, ("c", "d"))


def test_numbers_of_numpy_are_numbers():
    config = from_python(Config, "torchmae.verb", ("x",), {"workers": np.int64(3)})
    assert config.speed.workers == 3
    assert type(config.speed.workers) is int


@pytest.mark.parametrize("text", ["224", "192x256"])
def test_sizes_as_text(text):
    assert size_text(parse_size(text)) == text


@pytest.mark.parametrize("text", ["0x3", "big", "", "3x", "-1"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        parse_size(text)


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_of_every_verb_has_help_and_a_type_that_flags_can_have(verb):
    for setting in options_of(load(VERBS[verb].config)).values():
        assert setting.metadata["help"] or setting.metadata["hidden"], setting.name
        assert not is_dataclass(setting.type)


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_left_open_says_its_default_in_words(verb):
    """A default of None, or of no values, means nothing to a reader of --help."""
    config = load(VERBS[verb].config)
    rules = getattr(config, "RULES", {})
    for name, setting in options_of(config).items():
        if setting.default in (None, ()) and not setting.positional:
            words = setting.metadata["hidden"] or setting.metadata["otherwise"] or name in rules
            assert words or name in SELF_EXPLAINING, f"mae {verb} {setting.flag}"


SELF_EXPLAINING = {
    *("minutes", "plugin", "val", "class_map", "mask", "only", "out", "model"),
    *("features", "patch", "point", "query"),
}


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_what_is_resolved_is_typed_so(verb):
    """The rules, and the types that say "no longer None", name the same settings."""
    module = load(f"torchmae.tasks.{verb}.config:__dict__")
    config = module[verb.title()]
    resolved = module[f"Resolved{verb.title()}"]
    groups = {entry.name: entry for entry in fields(resolved)}
    narrowed = {
        name
        for group in groups
        for name in getattr(load_type(resolved, group), "__annotations__", {})
        if load_type(resolved, group).__name__.startswith("Resolved")
    }
    # an encoder that exists already has its own; a probe has no level of --augment
    may_stay_open = {"model", "patch_size", "augment"}
    if verb == "pretrain":  # crops of one size have no scale
        may_stay_open.add("crop_scale")
    decided_by_run = {"max_megapixels", "dtype", "channels"}
    assert narrowed - decided_by_run == set(config.RULES) - may_stay_open - decided_by_run | (
        {"patch_size"} & narrowed
    )


def load_type(config, name):
    from typing import get_type_hints

    return get_type_hints(config)[name]
