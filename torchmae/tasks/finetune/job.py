"""A fine-tuning that is ready."""

from dataclasses import dataclass

from torchmae.data.cache.choose import CacheChoice
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.labels import LabelledSets
from torchmae.data.loader import Batches
from torchmae.data.scan import Scan
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
    stream: Batches | DeviceLoader  # the batches, with a cache around them where there is one
    found: Scan | None = None  # None when resuming
    cache: CacheChoice = CacheChoice("none", "not needed")
