"""A fine-tuning that is ready."""

from dataclasses import dataclass

from torchmae.data.cache.choose import CacheChoice
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.labels import LabelledSets
from torchmae.data.loader import Batches, Paired
from torchmae.data.scan import Scan
from torchmae.data.sources.source import Source
from torchmae.models.heads import Classifier
from torchmae.settings.defaults import Choice
from torchmae.tasks.finetune.config import ResolvedFinetune


@dataclass(frozen=True)
class Job:
    """A fine-tuning that is ready to start or to be resumed."""

    config: ResolvedFinetune
    data: LabelledSets
    model: Classifier
    chosen: dict[str, Choice]
    batches: Batches
    # The batches, with a cache around them where there is one, and images without labels beside.
    stream: Batches | DeviceLoader | Paired
    found: Scan | None = None  # None when resuming
    cache: CacheChoice = CacheChoice("none", "not needed")
    unlabelled: Source | None = None
