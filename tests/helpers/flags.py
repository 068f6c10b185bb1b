"""All flags of the command line as text: `python tests/helpers/flags.py > tests/flags.txt`."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def default_of(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def flags(config: type[Any], instance: Any = None) -> Iterator[tuple[str, str]]:
    """Name and default of each flag; those of nested groups of options beside the others."""
    hints = get_type_hints(config)
    for field in fields(config):
        value = default_of(field) if instance is None else getattr(instance, field.name)
        if is_dataclass(hints[field.name]):
            yield from flags(hints[field.name], None if value is MISSING else value)
        else:
            name = field.name.replace("_", "-")
            yield f"--{name}", "required" if value is MISSING else repr(value)


def text() -> str:
    from torchmae.cli import VERBS, load

    lines = []
    for verb, (config, _, _) in VERBS.items():
        lines.append(f"\nmae {verb}\n")
        lines += [f"  {name:<22} {default}\n" for name, default in flags(load(config))]
    return "".join(lines).lstrip()


if __name__ == "__main__":
    print(text(), end="")
