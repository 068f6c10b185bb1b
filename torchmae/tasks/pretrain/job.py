"""A pre-training that is ready."""

from dataclasses import dataclass

from torchmae.data.cache.choose import CacheChoice
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.loader import Batches
from torchmae.data.scan import Scan
from torchmae.models.mae import MAE
from torchmae.models.masking import MaskGenerator
from torchmae.settings.defaults import Choice
from torchmae.tasks.pretrain.config import ResolvedPretrain
from torchmae.tasks.pretrain.task import PretrainTask


@dataclass(frozen=True)
class Job:
    """A pre-training that is ready to start or to be resumed."""

    config: ResolvedPretrain
    batches: Batches
    model: MAE
    origin: str  # where the weights come from, in words
    found: Scan | None  # None when resuming
    chosen: dict[str, Choice]
    stream: Batches | DeviceLoader  # the batches, with a cache around them where there is one
    cache: CacheChoice = CacheChoice("none", "not needed")

    def task(self) -> PretrainTask:
        """What `fit` trains."""
        masking, seed = self.config.masking, self.config.optim.seed
        masks = MaskGenerator.of(vars(masking))
        return PretrainTask(
            self.model, masks, seed, masking.noise, masking.views, masking.complementary
        )
