"""The model card of an export: README.md beside the weights."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from torchmae.disk import sha256
from torchmae.models.encoders import Backbone
from torchmae.models.patches import size_name
from torchmae.report.words.limits import limits, markdown
from torchmae.report.words.measured import measured
from torchmae.runfolder import read_config, read_results


def unit(encoder: Backbone) -> str:
    """What mean and std are of."""
    if encoder.scaling is None:
        return "pixels / 255"
    return "values" if encoder.scaling.kind == "none" else f"{encoder.scaling.words()} of values"


# What stands before the size of the images.
SEEN = {
    "segmenter": "of any size; crops to train on: ",
    "detector": "in training, and in a graph (onnx, torch-export), one at a time: ",
}


def card(
    run: str, what: str, encoder: Backbone, lines: Sequence[str], note: str, folder: Path
) -> str:
    """The model card: architecture, data, recipe, results, limits, files, licence, how to load it.

    Cards are made to be published: of absolute paths only the last name is shown.

    Args:
        run: the run folder that was exported.
        what: the part of it: "mae", "classifier", "segmenter", "detector" or "encoder".
        encoder: its encoder.
        lines: of Python, which load the files.
        note: how far the loaded model was found to agree with torchmae's.
        folder: the files.

    Returns:
        Markdown.
    """
    described = read_config(run)
    data: dict[str, Any] = described.get("data") or {}
    chosen = {n: v for n, v in described.get("config", {}).items() if v not in (None, [])}
    recipe = {n: public(v) for n, v in chosen.items() if n != "out"}
    names = described["model"].get("classes", ()) if what != "encoder" else ()
    classes = f"\n\nClasses: {', '.join(map(markdown, names))}." if names else ""
    results = json.dumps(public(read_results(Path(run))), indent=1)
    # The same JSON, in which not even a careless renderer finds HTML.
    results = results.replace("<", r"\u003c").replace(">", r"\u003e")
    shown = "None were measured." if results == "[]" else f"```json\n{results}\n```"
    lead = "".join(f"* {line}\n" for line in measured(Path(run), what))
    seen = SEEN.get(what, "")
    height, width = encoder.image_size
    version = markdown(described.get("torchmae", ""))
    newline = "\n"
    return f"""# A Vision Transformer ({what}) made with torchmae {version}

{len(encoder.layers())} blocks, {encoder.embed_dim} wide, \
{encoder.config().get("num_heads")} heads, patches of {size_name(encoder.patch)} px.

Images: {seen}{encoder.channels} x {height} x {width}, normalized as `({unit(encoder)} - mean) / \
std` \
with mean {list(encoder.mean)}\nand std {list(encoder.std)}.{classes}

## Load

```python
{newline.join(lines)}
```

{note}

## Data and recipe

Made by mae {markdown(described.get("verb", "?"))}; \
images: {markdown(data.get("count", "not known"))}; fingerprint of their list:
{markdown(data.get("fingerprint", "none"))}; \
commit of torchmae: {markdown(described.get("commit") or "not known")}.

{newline.join(f"* {markdown(name)}: {markdown(value)}" for name, value in recipe.items())}

## Results

{lead}{newline if lead else ""}{shown}

## Limits

{newline.join(f"* {line}" for line in limits(Path(run), what))}

## Files (SHA-256)

{newline.join(f"* {file.name}: `{sha256(file)}`" for file in sorted(folder.iterdir()))}

## License

Not stated here: whoever publishes these weights chooses it; \
imported weights keep that of their source.
"""


def public(value: Any) -> Any:
    """The value with absolute paths cut to their last name, also behind a scheme or an option."""
    if isinstance(value, dict):
        return {public(name): public(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    return PATH.sub(last_name, value) if isinstance(value, str) else value


PATH = re.compile(r"""(^|[\s:='"(,])((?:~[\w.-]*)?/[^?&]*)""")


def last_name(match: re.Match[str]) -> str:
    """What replaces a match of `PATH`: an address such as https://... stays."""
    before, path = match.groups()
    address = before == ":" and path.startswith("//") and not path.startswith("///")
    return match[0] if address else before + (PurePath(path).name or path)
