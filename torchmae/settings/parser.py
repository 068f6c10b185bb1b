"""The command line of a config class: argparse, with flags in groups, defaults in words and errors
as `UserError`."""

import argparse
import inspect
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from torchmae.errors import UserError, choose, nearest
from torchmae.settings.options import Option, build, options_of

logger = logging.getLogger(__name__)

C = TypeVar("C")
Preset = Callable[[], dict[str, Any]]


# Flags of other programs, to ours.
ELSEWHERE = {
    **dict.fromkeys(("--lr", "--blr", "--learning-rate"), "--base-lr"),
    **dict.fromkeys(("--bs", "--batch", "--batchsize"), "--batch-size"),
    **dict.fromkeys(("-o", "--output", "--output-dir", "--save-dir", "--run"), "--out"),
    **dict.fromkeys(("-j", "--num-workers", "--jobs"), "--workers"),
    **dict.fromkeys(("--img-size", "--imgsz", "--input-size", "--resolution"), "--image-size"),
    **dict.fromkeys(("--gpu", "--gpus", "--cuda"), "--device cuda"),
    **dict.fromkeys(("--amp", "--bf16", "--fp16"), "--precision"),
    **dict.fromkeys(("--ignore", "--skip", "--filter"), "--exclude"),
    **dict.fromkeys(("--test", "--validation", "--valid"), "--val"),
    **dict.fromkeys(("--checkpoint", "--weights", "--pretrained", "--init"), "--from"),
    "--cpu": "--device cpu",
    "--wd": "--weight-decay",
    "--format": "--to",
}
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"  # that look like a hyphen
QUOTES = "\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"


class Parser(argparse.ArgumentParser):
    """argparse that raises `UserError` in place of leaving the process, and takes flags in full
    only."""

    def __init__(self, verb: str, description: str):
        super().__init__(
            prog=f"mae {verb}",
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.verb = verb
        self.words: Sequence[str] = ()  # what is parsed, for messages

    def error(self, message: str) -> NoReturn:
        """Called by argparse for every mistake that it finds."""
        if message.startswith("the following arguments are required: "):
            name = message.partition(": ")[2].partition(",")[0]
            several = [f for a in self._actions if a.nargs == "+" for f in a.option_strings]
            taker = next((flag for flag in several if flag in self.words), None)
            if taker is not None and not name.startswith("-"):
                raise UserError(
                    f"{name} is missing: {taker} takes every word behind it, so put {name} before "
                    f"{taker}"
                )
            raise UserError(f"{name} is missing: mae {self.verb} --help says what goes there")
        text = message.removeprefix("argument ")
        raise UserError(f"{text}. mae {self.verb} --help lists the flags")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A column of flags, a column of sentences, 100 characters in all."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)


def parse(config: type[C], verb: str, arguments: Sequence[str], presets: Mapping[str, Preset]) -> C:
    """The config that the arguments of a verb describe; flags win over those of `--preset`.

    Raises:
        UserError: a flag that is unknown, a value of another kind, a missing argument.
        SystemExit: `--help` was asked for, and is printed.
    """
    refuse_typographic(arguments)
    parser = parser_of(config, verb, presets)
    parser.words = arguments
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset")
    try:
        preset = first.parse_known_args(arguments)[0].preset
    except argparse.ArgumentError:
        raise UserError(f"--preset needs a name: {', '.join(presets)}") from None
    if preset is not None:
        if not presets:
            raise UserError("this verb has no presets; mae pretrain and mae finetune have")
        chosen = choose(presets, preset, "preset")()
        for setting in options_of(config).values():
            if setting.metadata["instead_of"] and is_given(setting.flag, arguments):
                chosen.pop(setting.metadata["instead_of"], None)
        for action in parser._actions:
            if not action.option_strings and action.dest in chosen:
                action.nargs = "?"  # what the preset names may be left out
        parser.set_defaults(**chosen)
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    values, unknown = parser.parse_known_args(arguments)
    refuse_unknown(parser, unknown)
    return build(config, {name: value for name, value in vars(values).items() if name != "preset"})


def parser_of(config: type[Any], verb: str, presets: Mapping[str, Any]) -> Parser:
    """The parser of a verb; its help is that of `mae VERB --help`."""
    parser = Parser(verb, inspect.cleandoc(config.__doc__ or ""))
    groups: dict[str, argparse._ArgumentGroup] = {}
    rules: Mapping[str, Any] = getattr(config, "RULES", {})
    if presets:
        names = ", ".join(presets)
        parser.add_argument(
            "--preset",
            metavar="NAME",
            help=f"start from a recipe, which other flags change: {names}",
        )
    shown = {name: o for name, o in options_of(config).items() if not o.metadata["hidden"]}
    places = [
        o.metadata["metavar"] if o.default is MISSING else f"[{o.metadata['metavar']}]"
        for o in shown.values()
        if o.positional
    ]
    required = [
        f"{o.flag} ..." for o in shown.values() if o.default is MISSING and not o.positional
    ]
    parser.usage = " ".join(["mae", verb, *places, *required, "[flags]"])
    for name, setting in shown.items():
        group = (
            parser
            if setting.positional
            else groups.setdefault(setting.group, parser.add_argument_group(setting.group))
        )
        add(group, setting, rules[name].words if name in rules else None)
    return parser


def add(group: Any, setting: Option, rule: str | None) -> None:
    """Adds one setting to a parser."""
    kind, several = value_type(setting.type)
    text = help_text(setting, rule).replace("%", "%%")
    arguments: dict[str, Any] = {"help": text, "default": setting.default}
    if kind is bool:
        # None is left to a rule: both ways can be said
        two_ways = setting.default is not False
        action = argparse.BooleanOptionalAction if two_ways else "store_true"
        group.add_argument(setting.flag, dest=setting.name, action=action, **arguments)
        return
    arguments |= {
        "type": converter(kind),
        "metavar": setting.metadata["metavar"] or placeholder(setting, kind),
    }
    if setting.metadata["repeated"]:
        arguments |= {"action": Repeated, "nargs": several if setting.metadata["several"] else None}
    elif several:
        arguments |= {"nargs": several, "action": AsTuple}
    if setting.positional:
        if setting.default is not MISSING:
            arguments["nargs"] = several or "?"
        else:
            del arguments["default"]
        group.add_argument(setting.name, **arguments)
    else:
        required = setting.default is MISSING
        if required:
            del arguments["default"]
        group.add_argument(setting.flag, dest=setting.name, required=required, **arguments)


class AsTuple(argparse.Action):
    """Stores several values as a tuple, as configs hold them."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, tuple(values))


class Repeated(argparse.Action):
    """Adds to a tuple: `--plugin a.py --plugin b.py`. The first one replaces the default."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        before = () if before is None or before is self.default else before
        added = values if isinstance(values, list) else [values]
        setattr(namespace, self.dest, (*before, *added))


def is_given(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a flag is among the words, as `--flag value` or `--flag=value`."""
    return any(word == flag or word.startswith(f"{flag}=") for word in arguments)


def value_type(kind: Any) -> tuple[Callable[[str], Any], str | int | None]:
    """The type of one value, and how many there are: None (one), "+" or a number."""
    if get_origin(kind) is UnionType:
        kinds = [one for one in get_args(kind) if one is not NoneType]
        if float in kinds and str in kinds:
            return number_or_text, None
        return value_type(str if str in kinds else kinds[0])
    if get_origin(kind) is tuple:
        items = get_args(kind)
        return items[0], "+" if items[-1] is ... else len(items)
    return kind, None


def number_or_text(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return text


def converter(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Text to a value, with an error in words."""

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}") from None

    return convert


def placeholder(setting: Option, kind: Callable[[str], Any]) -> str:
    """What stands for the value in `--help`."""
    numbers: dict[Any, str] = {int: "N", float: "X", number_or_text: "X"}
    return numbers.get(kind, setting.name.rpartition("_")[2].upper())


def help_text(setting: Option, rule: str | None) -> str:
    """What a setting is, and its default in words."""
    text, default = setting.metadata["help"], setting.default
    if setting.positional or default is False or default is MISSING:
        return str(text)
    if default is None or default == ():
        otherwise = rule or setting.metadata["otherwise"]
        return f"{text} (default: {otherwise})" if otherwise else str(text)
    values = default if isinstance(default, tuple) else (default,)
    shown = " ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)
    return f"{text} (default: {'on' if default is True else shown})"


def refuse_unknown(parser: Parser, unknown: Sequence[str]) -> None:
    """A `UserError` for what no flag took, with the nearest flag."""
    if not unknown:
        return
    word = next((one for one in unknown if one.startswith("-")), unknown[0]).partition("=")[0]
    if not word.startswith("-"):
        listed = len(unknown) > 1 and all(os.path.exists(one) for one in unknown)
        quotes = " A pattern is given in quotes: 'photos/*.jpg'." if listed else ""
        raise UserError(
            f"{word} is one argument too many of mae {parser.verb}.{quotes} "
            f"mae {parser.verb} --help lists the flags"
        )
    flags = [flag for action in parser._actions for flag in action.option_strings]
    known = ELSEWHERE.get(word.replace("_", "-"))
    near = known if known and known.partition(" ")[0] in flags else nearest(word, flags)
    hint = f" Did you mean {near}?" if near else ""
    if word in ("--resume", "--continue"):
        hint = " A run is resumed by the same command, without a flag."
    raise UserError(
        f"{word} is not a flag of mae {parser.verb}.{hint} mae {parser.verb} --help lists the flags"
    )


def refuse_typographic(words: Sequence[str]) -> None:
    """Raises UserError for dashes and quotes of word processors and web pages, which are letters
    to a shell."""
    for word in words:
        if not word or os.path.exists(word):
            continue
        if word[0] in DASHES:
            flag = f"--{word.lstrip(DASHES + '-')}"
            raise UserError(
                f"{word} begins with a dash ({unicodedata.name(word[0])}) that looks like two "
                f"hyphens and is none, as word processors write it: type {flag}"
            )
        if {word[0], word[-1]} & {*QUOTES}:
            raise UserError(
                f"{word} has typographic quotes, which a shell takes for letters: type straight "
                f"ones, '{word.strip(QUOTES)}'"
            )
