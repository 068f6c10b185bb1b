"""The task of `mae detect`: the losses of proposals, classes, boxes and masks."""

from torch import Tensor

from torchmae.data.loader import Batch
from torchmae.models.detection.detector import Detector, image_keys
from torchmae.tasks.dense.detect.config import ResolvedDetect
from torchmae.tasks.dense.task import DenseTask


class DetectTask(DenseTask):
    """The sum of all losses of an image, the mean over images."""

    def __init__(self, model: Detector, config: ResolvedDetect):
        optim = config.optim
        super().__init__(model, config.model.train, optim.drop_path, optim.seed)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        assert isinstance(model, Detector) and isinstance(batch.targets, list)
        images = model.encoder.normalize(batch.images)
        keys = image_keys(self.seed, batch.epoch, batch.sample)
        found = model.losses(images, batch.targets, keys, self.draws(batch))
        total = sum(found.values())
        assert isinstance(total, Tensor)
        return {"loss": total.mean()}
