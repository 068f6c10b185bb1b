"""What a tracker is, and what it is opened with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

PROJECT = "torchmae"  # of W&B and MLflow, where the environment names no other


@runtime_checkable
class Tracker(Protocol):
    """One of them, open. Its methods may raise: no failure of theirs ends a training."""

    @property
    def id(self) -> str | None:
        """What it calls the run, so that a resumed training goes on there; None: it needs none."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, path: Path) -> None: ...
    def close(self, ended_well: bool) -> None: ...


class Opening(NamedTuple):
    """What a tracker needs to begin, or to go on.

    Attributes:
        run: the run folder.
        settings: those of config.json.
        start: steps done before.
        id: what it called the run; None: it is new there.
    """

    run: Path
    settings: Mapping[str, Any]
    start: int
    id: str | None

    @property
    def name(self) -> str:
        return self.run.resolve().name
