"""Which annotated images are taken: patterns of names (--include, --exclude)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torchmae.data.config import Listing
from torchmae.data.decode import image_extensions
from torchmae.data.sources.select import kept, subset
from torchmae.data.sources.source import BadFile, Source, suffix_of


@runtime_checkable
class Part(Protocol):
    """Images with annotations; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> Source: ...

    def select(self, ids: Sequence[int], /) -> Any:
        """Some of the images, with their annotations."""

    def keep_findings(self, relevant: Callable[[BadFile], bool], /) -> Any:
        """The same images with only some of what is wrong with annotations."""


P = TypeVar("P", bound=Part)


def select_parts(parts: Sequence[P], listing: Listing, spec: str) -> list[P]:
    """The annotated images of some sets that a listing takes, by the names of the images.

    What is wrong with the annotations of others is not mentioned.

    Args:
        parts: opened together, such as training and validation images.
        listing: its patterns.
        spec: what the user named, for messages.

    Raises:
        UserError: a pattern matches no image in any of the sets, or nothing is left of one.
    """
    if not listing.patterns:
        return list(parts)
    chosen = []
    for part, found in zip(parts, kept([part.source for part in parts], listing, spec)):

        def relevant(file: BadFile, takes: Callable[[str], bool] = found.takes) -> bool:
            """Whether a finding is about no image, such as "annotation 7", or about one taken."""
            image, _, _ = file.name.rpartition(", ")  # from "name, annotation 7"
            names = [name for name in (image, file.name) if suffix_of(name) in image_extensions()]
            return all(map(takes, names[:1]))

        some = part.select(found.ids).keep_findings(relevant)
        chosen.append(replace(some, source=subset(part.source, found)))
    return chosen
