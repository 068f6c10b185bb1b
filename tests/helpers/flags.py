"""All flags of the command line as text: `python tests/helpers/flags.py > tests/flags.txt`."""

from torchmae.settings.options import REQUIRED, options_of
from torchmae.verbs import VERBS, load


def text() -> str:
    """One line a flag: name and default; for None also the rule that chooses a value."""
    lines = []
    for verb, entry in VERBS.items():
        config = load(entry.config)
        rules = getattr(config, "RULES", {})
        lines.append(f"\nmae {verb}\n")
        for name, option in options_of(config).items():
            if option.metadata["hidden"]:
                continue
            flag = option.metadata["metavar"] if option.positional else option.flag
            default = "required" if option.default is REQUIRED else repr(option.default)
            rule = f" ({rules[name].words})" if name in rules else ""
            lines.append(f"  {flag:<23} {default}{rule}\n")
    return "".join(lines).lstrip()


if __name__ == "__main__":
    print(text(), end="")
