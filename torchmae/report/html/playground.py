"""The page of `mae serve` and of `mae export --to page`: one page with two back ends.

`static/page.html`, `page.css` and `page.js` are the page, `compute.js` what it computes by itself.
It asks `backend.js` for everything else: that is `server.js`, which asks `mae serve`, or
`browser.js`, which runs an ONNX file in the browser.
"""

import math
from pathlib import Path
from typing import Any

from torchmae.models.mae import MAE
from torchmae.models.masking import MASKINGS, MaskGenerator
from torchmae.runfolder import kind_of, last_step, read_config
from torchmae.version import __version__

STATIC = Path(__file__).parent / "static"
SHARED = ("page.html", "page.css", "page.js", "compute.js")
# Only files of the page's own origin; pictures it makes itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
HEAD = "<!-- the policy of a page without a server of its own -->"


def files(backend: str) -> dict[str, bytes]:
    """The files of the page by name.

    Args:
        backend: "server.js" or "browser.js".
    """
    return {
        **{name: (STATIC / name).read_bytes() for name in SHARED},
        "backend.js": (STATIC / backend).read_bytes(),
    }


def with_policy(html: bytes, policy: str) -> bytes:
    """The page with its policy inside, for servers that send none."""
    tag = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return html.replace(HEAD.encode(), tag.encode())


def about(run: str, model: Any, best: bool = False) -> dict[str, Any]:
    """What the page has to know of a run: JSON.

    Args:
        run: the run folder.
        model: its module.
        best: whether its weights are the best, not the last ones.

    Returns:
        Sizes (height, width), the run's mask, `pictures`: whether hidden patches can be drawn, and
        `statistics`: whether their mean and std are predicted apart from them.
    """
    described = read_config(run)
    settings, kind = described["config"], kind_of(described)
    encoder = model if kind == "encoder" else model.encoder
    pictures = isinstance(model, MAE) and model.target.has_pictures()
    return {
        "run": Path(run).resolve().name,
        "step": 0 if best else last_step(Path(run)),
        "kind": kind,
        "version": __version__,
        "size": encoder.image_size,
        "patch": encoder.patch,
        "grid": encoder.grid,
        "channels": encoder.channels,
        "crop": settings.get("crop_pct", 1.0),
        "width": encoder.embed_dim,
        "patches": math.prod(encoder.grid),
        "pictures": pictures,
        "statistics": pictures and model.target.needs_statistics,
        "noise": settings.get("noise", 0.0),
        "mask_ratio": MaskGenerator.of(settings).ratio,
        "masking": settings.get("masking", "random"),
        "maskings": list(MASKINGS),
    }
