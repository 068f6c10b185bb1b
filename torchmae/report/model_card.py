"""The model card of an export: what it is, from which data and recipe, how good, which files, whose licence, how to load it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from torchmae.disk import sha256
from torchmae.models.vit import ViT
from torchmae.runfolder import read_config, read_results


def card(
    run: str,
    what: str,
    encoder: ViT,
    classes: Sequence[str],
    lines: Sequence[str],
    note: str,
    folder: Path,
) -> str:
    """The README.md of the files in `folder`, `what` of a run; `lines` of Python load them, `note` says how well.

    Cards are made to be published: of absolute paths only the last name is told.
    """
    described, results = read_config(run), read_results(Path(run))
    data: dict[str, Any] = described.get("data") or {}
    recipe = {
        n: public(v) for n, v in described.get("config", {}).items() if v is not None and n != "out"
    }
    height, width = encoder.image_size
    text = f"""# A Vision Transformer ({what}) made with torchmae {described.get("torchmae", "")}

{encoder.depth} blocks, {encoder.embed_dim} wide, {encoder.num_heads} heads, patches of {encoder.patch_size} px.

Images: {encoder.channels} x {height} x {width}, floats `(pixels / 255 - mean) / std` with mean {list(encoder.mean)}
and std {list(encoder.std)}.{f"{chr(10)}{chr(10)}Classes: {', '.join(classes)}." if classes else ""}

## Load

```python
{chr(10).join(lines)}
```

{note}

## Data and recipe

Made by `mae {described.get("verb", "?")}`; images: {data.get("count", "not known")}; fingerprint of their list:
{data.get("fingerprint", "none")}; commit of torchmae: {described.get("commit") or "not known"}.

{chr(10).join(f"* {name}: {value}" for name, value in recipe.items())}

## Figures

{f"```json{chr(10)}{figures(results)}{chr(10)}```" if results else "None were measured."}

## Files (SHA-256)

{chr(10).join(f"* {file.name}: `{sha256(file)}`" for file in sorted(folder.iterdir()))}

## Licence

Not stated here: whoever publishes these weights chooses it; imported weights keep that of their source.
"""
    return text


def figures(results: list[dict[str, Any]]) -> str:
    return json.dumps(public(results), indent=1)


def public(value: Any) -> Any:
    """The value with only the last name of every absolute path in it, also behind a scheme or an option."""
    if isinstance(value, dict):
        return {public(name): public(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    return PATH.sub(last_name, value) if isinstance(value, str) else value


PATH = re.compile(r"""(^|[\s:='"(,])((?:~[\w.-]*)?/[^?&]*)""")


def last_name(found: re.Match[str]) -> str:
    before, path = found.groups()
    address = before == ":" and path.startswith("//") and not path.startswith("///")  # https://...
    return found[0] if address else before + (PurePath(path).name or path)
