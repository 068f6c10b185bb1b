"""A fine-tuning that is ready."""

from dataclasses import dataclass

from torchmae.data.augment import StrongAugment
from torchmae.data.labels import LabelledSets
from torchmae.data.loader import Batches
from torchmae.data.transforms import RandomResizedCropFlip
from torchmae.models.heads import Classifier
from torchmae.settings.defaults import Choice
from torchmae.tasks.finetune.config import ResolvedFinetune
from torchmae.train.distributed import World


@dataclass(frozen=True)
class Job:
    """A fine-tuning that is ready to start or to be resumed."""

    config: ResolvedFinetune
    data: LabelledSets
    model: Classifier
    chosen: dict[str, Choice]

    def batches(self, world: World) -> Batches:
        """The augmented training images of this process, with their labels."""
        config, encoder = self.config, self.model.encoder
        seed, strong = config.optim.seed, config.regularization
        crop = RandomResizedCropFlip(
            encoder.image_size, seed, config.crop.crop_scale, config.crop.flip
        )
        augment = StrongAugment(
            crop, strong.randaug_magnitude, strong.random_erasing, encoder.mean, encoder.std
        )
        batch_size, labels = config.optim.batch_size, self.data.train_labels
        return Batches(self.data.train, augment, batch_size, seed, world.rank, world.size, labels)
