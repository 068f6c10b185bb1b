"""Settings as frozen dataclasses: one definition is the flags, the options of the library and
config.json.

A setting is a dataclass field made by `option`. A field whose type is a dataclass is a group: on
the command line, in the library and in config.json its settings appear under their own names, flat,
so a name is unique within a verb.
"""

import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from numbers import Number
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from torchmae.errors import UserError, choose, printable
from torchmae.settings.python_data import PythonData, as_images

C = TypeVar("C")


class ChangeableOptions:
    """A group whose settings may differ when a run is resumed: the weights do not depend on
    them."""


class Range(NamedTuple):
    """What a number may be; NaN and infinity never pass."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def problem(self, value: float) -> str | None:
        """What is wrong with a value, in words; None if nothing is."""
        if not math.isfinite(value):
            return "must be a finite number"
        if self.above is not None and not value > self.above:
            return f"must be more than {self.above:.12g}"
        if self.at_least is not None and not value >= self.at_least:
            return (
                "must not be negative"
                if not self.at_least
                else f"must be at least {self.at_least:.12g}"
            )
        if self.below is not None and not value < self.below:
            return f"must be below {self.below:.12g}"
        if self.at_most is not None and not value <= self.at_most:
            return f"must be at most {self.at_most:.12g}"
        return None


REQUIRED = MISSING  # as a default: the setting has to be named
ANY = Range()
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(at_least=0)
SHARE = Range(at_least=0, at_most=1)  # 0 and 1 included
BELOW_ONE = Range(at_least=0, below=1)

# Upper ends: far above what anybody trains with, so that a slip of the keyboard is an answer at
# once and not a training that ends badly, never logs, or asks for terabytes.
MINUTES = Range(at_least=0, at_most=525_600)  # a year
DECAY = Range(at_least=0, at_most=10)
ALPHA = Range(at_least=0, at_most=100)  # of the beta distribution that mixing draws from
STEPS = Range(above=0, at_most=100_000)  # between two records, which are kept in memory until then
EPOCHS = Range(above=0, at_most=100_000)  # 60 times the longest training of the paper
WIDTH = Range(above=0, at_most=65_536)
BLOCKS = Range(above=0, at_most=1000)
CHANNELS = Range(above=0, at_most=4096)
MEGAPIXELS = Range(above=0, at_most=10_000)  # 30 GB of RGB pixels
BATCH = Range(above=0, at_most=1 << 20)


class Option(NamedTuple):
    """One setting of a verb: its field, its type, and the group it is shown in."""

    name: str
    type: Any
    default: Any
    metadata: Mapping[str, Any]
    group: str

    @property
    def flag(self) -> str:
        """Such as "--mask-ratio"."""
        return "--" + self.metadata["flag"]

    @property
    def positional(self) -> bool:
        return bool(self.metadata["positional"])


def option(  # noqa: PLR0913 - a declaration, whose arguments are given by name
    default: Any,
    help: str,
    *,
    within: Range = ANY,
    metavar: str | None = None,
    flag: str | None = None,
    otherwise: str | None = None,
    instead_of: str | None = None,
    repeated: bool = False,
    several: bool = False,
    images: bool = False,
) -> Any:
    """A setting.

    Args:
        default: its value where it is not named; None where a rule chooses it, or where it is
            optional.
        help: one sentence or two for `--help`.
        within: what a number (each, of several) may be.
        metavar: the placeholder in `--help`.
        flag: its name on the command line, if that is not the field's.
        otherwise: what happens without it, in words, for settings that are None by default and have
            no rule.
        instead_of: another setting that it takes the place of, also of a preset's.
        repeated: several values are given by repeating the flag, one each.
        several: several values are given by one flag or by repeating it.
        images: it names images, which callers of the library may hold in Python.
    """
    metadata = dict(help=help, within=within, metavar=metavar, flag=flag, otherwise=otherwise)
    more = dict(instead_of=instead_of, positional=False, hidden=False, images=images)
    return field(
        default=default,
        metadata={**metadata, **more, "repeated": repeated or several, "several": several},
    )


def argument(
    help: str, metavar: str, default: Any = MISSING, encoder: bool = False, images: bool = False
) -> Any:
    """A setting that is given by its place on the command line, without a flag.

    `encoder`: it names run folders, and may name encoders of timm in their place. `images`: as for
    `option`.
    """
    metadata = dict(help=help, within=ANY, metavar=metavar, flag=None, otherwise=None)
    return field(
        default=default,
        metadata={
            **metadata,
            "instead_of": None,
            "repeated": False,
            "several": False,
            "positional": True,
            "hidden": False,
            "encoder": encoder,
            "images": images,
        },
    )


def hidden(default: Any) -> Any:
    """A setting that the verb has, but decides by itself: no flag and no option."""
    metadata = dict(help="", within=ANY, metavar=None, flag=None, otherwise=None)
    return field(
        default=default,
        metadata={
            **metadata,
            "instead_of": None,
            "repeated": False,
            "several": False,
            "positional": False,
            "hidden": True,
        },
    )


def options_of(config: type[Any]) -> dict[str, Option]:
    """All settings of a config class by name, those of its groups included; arguments first."""
    found: dict[str, Option] = {}
    hints = get_type_hints(config)
    for entry in fields(config):
        if is_dataclass(hints[entry.name]):
            group = hints[entry.name]
            defaults = flatten(entry.default) if entry.default is not MISSING else {}
            for name, inner in options_of(group).items():
                if name in found:
                    raise TypeError(f"{config.__name__} has two settings named {name}")
                found[name] = inner._replace(default=defaults.get(name, inner.default))
        else:
            found[entry.name] = describe(
                entry, hints[entry.name], getattr(config, "GROUP", "other")
            )
    return dict(sorted(found.items(), key=lambda item: not item[1].positional))


def describe(entry: Field[Any], kind: Any, group: str) -> Option:
    """The option that a field is."""
    metadata = {**entry.metadata, "flag": entry.metadata["flag"] or entry.name.replace("_", "-")}
    return Option(entry.name, kind, entry.default, metadata, group)


def flatten(config: Any) -> dict[str, Any]:
    """The values of all settings by name: what config.json holds."""
    flat: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        flat |= flatten(value) if is_dataclass(value) else {entry.name: value}
    return flat


def build(config: type[C], values: Mapping[str, Any]) -> C:
    """The config that has these values; settings that are not among them have their defaults."""
    hints = get_type_hints(config)
    arguments: dict[str, Any] = {}
    for entry in fields(config):  # type: ignore[arg-type]
        kind = hints[entry.name]
        if is_dataclass(kind):
            base = flatten(entry.default) if entry.default is not MISSING else {}
            arguments[entry.name] = build(kind, {**base, **values})  # type: ignore[arg-type]
        elif entry.name in values:
            arguments[entry.name] = values[entry.name]
    return config(**arguments)


def changed(config: C, **values: Any) -> C:
    """The config with some settings changed, whatever group they are in."""
    unknown = set(values) - set(flatten(config))
    if unknown:
        raise TypeError(f"{type(config).__name__} has no {', '.join(sorted(unknown))}")
    return build(type(config), {**flatten(config), **values})


def changeable(config: type[Any]) -> frozenset[str]:
    """The settings that may differ when a run is resumed."""
    hints = get_type_hints(config)
    groups = [hints[entry.name] for entry in fields(config) if is_dataclass(hints[entry.name])]
    free = [group for group in groups if issubclass(group, ChangeableOptions)]
    return frozenset(name for group in free for name in options_of(group))


def requested(config: Any) -> dict[str, Any]:
    """The settings as they were requested, by name, with the sizes of images and patches in their
    one spelling."""
    values = flatten(config)
    if values.get("image_size") is not None:
        values["image_size"] = size_text(parse_size(values["image_size"]))
    if values.get("patch_size") is not None:
        values["patch_size"] = patch_text(parse_patch(values["patch_size"]))
    return values


def from_python(
    config: type[C], function: str, arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> C:
    """The config of a call of the library: positional arguments, then options by name.

    Paths become text and lists tuples, as on the command line; images that are in Python become
    `PythonData`, which the option `data_id`, of the library alone, gives a name.

    Raises:
        UserError: an option that is unknown, missing, given twice or of another type.
    """
    known = {name: o for name, o in options_of(config).items() if not o.metadata["hidden"]}
    data_id = None
    if takes_images(config):
        data_id, options = options.get(DATA_ID), {n: v for n, v in options.items() if n != DATA_ID}
    places = [name for name, o in known.items() if o.positional]
    if len(arguments) > len(places):
        raise UserError(
            f"{function} takes {', '.join(places)}, then options by name, not {len(arguments)} "
            "arguments"
        )
    values = dict(zip(places, arguments))
    for name, value in options.items():
        choose(known, name, f"option of {function}:")
        if name in values:
            raise UserError(f"{function} is given {name} twice")
        values[name] = value
    missing = [name for name, o in known.items() if o.default is MISSING and name not in values]
    if missing:
        raise UserError(f"{function} needs {missing[0]}: {known[missing[0]].metadata['help']}")
    for name, value in values.items():
        if known[name].metadata.get("images"):
            values[name] = as_images(value, known[name].type == tuple[str, ...], data_id)
    if data_id is not None and not any(held(value) for value in values.values()):
        raise UserError(
            f"data_id={data_id!r} is for data in Python: what is in files is recognized by itself"
        )
    return build(config, {name: as_typed(known[name], value) for name, value in values.items()})


DATA_ID = "data_id"


def takes_images(config: type[Any]) -> bool:
    """Whether a setting names images that may be in Python."""
    return any(o.metadata.get("images") for o in options_of(config).values())


def held(value: Any) -> bool:
    """Whether the value of a setting is in Python alone."""
    return isinstance(value[0] if isinstance(value, tuple) and value else value, PythonData)


def as_typed(setting: Option, value: Any) -> Any:
    """A Python value as the setting's type. Raises UserError where it is of another."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, Number) and hasattr(value, "item"):
        value = value.item()  # of numpy
    alone = setting.metadata["repeated"] or (setting.positional and setting.type == tuple[str, ...])
    if alone and isinstance(value, str):  # one plugin, one image
        value = (value,)
    if isinstance(value, list | tuple):
        value = tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in value)
    if not fits(value, setting.type):
        shown = printable(reprlib.repr(value))
        raise UserError(f"{setting.name}={shown}: must be {words(setting.type)}")
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type such as `float | None` or `tuple[str, ...]`; an int may be given
    for a float."""
    if get_origin(kind) is UnionType:
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, tuple) or (kinds[-1] is not ... and len(value) != len(kinds)):
            return False
        return all(
            fits(item, kinds[0] if kinds[-1] is ... else kinds[i]) for i, item in enumerate(value)
        )
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def words(kind: Any) -> str:
    """A type for people: "a number or None"."""
    if get_origin(kind) is UnionType:
        return " or ".join(dict.fromkeys(words(one) for one in get_args(kind)))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return (
            f"a list of {words(kinds[0]).removeprefix('a ')}s"
            if kinds[-1] is ...
            else f"{len(kinds)} numbers"
        )
    names = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        NoneType: "None",
    }
    return names[kind]


def check_ranges(config: Any) -> None:
    """Every number of a config within its range. Raises UserError that names the flag, the value
    and the range."""
    values = flatten(config)
    for name, setting in options_of(type(config)).items():
        for value in numbers_in(values[name]):
            problem = setting.metadata["within"].problem(value)
            if problem is not None:
                raise UserError(f"{setting.flag} {value:g}: {problem}")


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers that a value is or holds."""
    items = value if isinstance(value, tuple) else (value,)
    return (item for item in items if isinstance(item, int | float) and not isinstance(item, bool))


def parse_size(text: str | int) -> tuple[int, int]:
    """`224` to (224, 224), `192x256` to (192, 256): height, width in pixels."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text).lower())
    if not match or not int(match[1]) or match[2] == "0":
        raise UserError(f"--image-size {text}: a side such as 224, or HEIGHTxWIDTH such as 192x256")
    return int(match[1]), int(match[2] or match[1])


def size_text(size: tuple[int, ...]) -> str:
    """The inverse of `parse_size`: "224" or "192x256"."""
    return str(size[0]) if len(set(size)) == 1 else "x".join(map(str, size))


def parse_patch(text: str | int) -> int | tuple[int, int]:
    """`16` to 16, the side of a square patch, `8x32` to (8, 32): height, width in pixels.

    Raises:
        UserError: it is neither, or a side is 0 or more than any image has.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text).lower())
    if match is None:
        raise UserError(f"--patch-size {text}: a side such as 16, or HEIGHTxWIDTH such as 8x32")
    height, width = int(match[1]), int(match[2] or match[1])
    problem = WIDTH.problem(height) or WIDTH.problem(width)
    if problem is not None:
        raise UserError(f"--patch-size {text}: {problem}")
    return height if height == width else (height, width)


def patch_text(patch: int | tuple[int, ...]) -> int | str:
    """The inverse of `parse_patch`: 16, or "8x32"; also of a size whose sides are equal."""
    if isinstance(patch, int):
        return patch
    return patch[0] if len(set(patch)) == 1 else "x".join(map(str, patch))


def parse_ratio(value: str | float) -> tuple[float, float]:
    """`0.75` to (0.75, 0.75), `0.6..0.9` to (0.6, 0.9): the ends of a range of mask ratios.

    Raises:
        UserError: it is neither, or its ends are no shares or in no order.
    """
    first, dots, last = str(value).partition("..")
    try:
        low, high = float(first), float(last if dots else first)
    except ValueError:
        raise UserError(
            f"--mask-ratio {value}: a share such as 0.75, or a range such as 0.6..0.9"
        ) from None
    problem = BELOW_ONE.problem(low) or BELOW_ONE.problem(high)
    if problem is not None:
        raise UserError(f"--mask-ratio {value}: {problem}")
    if dots and not 0 < low < high:
        raise UserError(f"--mask-ratio {value}: a range goes from a share above 0 to a larger one")
    return low, high


ALL = "all"  # of --layer


def parse_layer(text: str | int | None) -> int | str | None:
    """`6` to 6, "all" to itself (`ALL`): which block's tokens are taken; None is the last."""
    if text is None or isinstance(text, int) or text == ALL:
        return text
    if not re.fullmatch(r"-?\d+", text):
        raise UserError(f"--layer {text}: the number of a block, from 1, or all")
    return int(text)
