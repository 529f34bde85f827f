import torch
from timm.task import DistillationTeacher
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.config import TrainConfig
from affnorm_zoo.data import Preprocessing, Source
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import check_classifier, load_model, match_labels
from affnorm_zoo.runs.model import reorder_classifier


class Teacher:
    """A trained network whose logits are the targets of another, for the same augmented images.

    Args:
        name: any name that :func:`affnorm_zoo.evaluation.load_model` accepts.
        source: the data; the teacher must have their classes, in any order.
        preprocessing: of the student. The images are normalised again if the teacher wants them otherwise.
        by_position: match classes by their order instead of their names.

    Raises:
        UsageError: the network cannot be loaded, or does not classify these images into these classes.
    """

    def __init__(
        self, name: str, source: Source, preprocessing: Preprocessing, by_position: bool, device: torch.device
    ) -> None:
        model = load_model(name)
        if model.num_classes != len(source.class_names):
            raise UsageError(
                f"train.distill_from={name} has {model.num_classes} classes, but {source.name} has "
                f"{len(source.class_names)}"
            )
        outputs = match_labels(name, model, source, by_position)
        if outputs is not None:
            reorder_classifier(model, outputs)
        check_classifier(name, model, preprocessing.input_size, len(source.class_names))
        self.network = DistillationTeacher(model.to(device).requires_grad_(False), device=device)
        shape = (1, -1, 1, 1)
        self.mean = torch.tensor(preprocessing.mean, device=device).reshape(shape)
        self.std = torch.tensor(preprocessing.std, device=device).reshape(shape)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images that are normalised for the student."""
        return self.network(self.network.normalize_input(images, self.mean, self.std))


class DistillationLoss(nn.Module):
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)) of logits (N, num_classes), the mean over images.

    Source:
        Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2; T² keeps the gradient's size.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.temperature = config.distill_temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (F.log_softmax(logits.float() / self.temperature, dim=1) for logits in (student, teacher))
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
