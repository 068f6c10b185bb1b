"""The training of a tokenizer that is ready."""

from dataclasses import dataclass

from torchmae.data.cache.choose import CacheChoice
from torchmae.data.cache.device import DeviceLoader
from torchmae.data.loader import Batches
from torchmae.data.scan import Scan
from torchmae.models.targets.tokenizer import Tokenizer
from torchmae.settings.defaults import Choice
from torchmae.tasks.tokenizer.config import ResolvedTokenizer
from torchmae.tasks.tokenizer.task import TokenizerTask


@dataclass(frozen=True)
class Job:
    """The training of a tokenizer that is ready to start or to be resumed."""

    config: ResolvedTokenizer
    batches: Batches
    model: Tokenizer
    found: Scan | None  # None when resuming
    chosen: dict[str, Choice]
    stream: Batches | DeviceLoader  # the batches, with a cache around them where there is one
    cache: CacheChoice = CacheChoice("none", "not needed")

    def task(self, steps: int) -> TokenizerTask:
        """What `fit` trains in so many steps."""
        config = self.config
        return TokenizerTask(self.model, steps, config.model.kl_weight, config.optim.seed)
