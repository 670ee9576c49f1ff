"""Images as grey values, and support vector machines that classify them."""

import torch
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from torch import Tensor


def grey_values(images: Tensor, num_levels: int | None) -> Tensor:
    """Levels -> [0, 1]; real numbers (``num_levels`` None) are not changed."""
    return images.float() if num_levels is None else images / (num_levels - 1)


class Classifier:
    """The class of an image, by a support vector machine.

    Args:
        images: to train on, ``(N, C, H, W)``.
        labels: their classes, ``(N,)``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._machine = SVC().fit(images.cpu().flatten(1).numpy(), labels.numpy())

    def __call__(self, images: Tensor) -> Tensor:
        """Classes of images ``(*batch, C, H, W)``; returns ``(*batch,)``."""
        found = self._machine.predict(images.flatten(0, -4).flatten(1).cpu().numpy())
        return torch.from_numpy(found).reshape(images.shape[:-3])


def accuracy_between(images: Tensor, others: Tensor) -> float:
    """Five-fold accuracy of a support vector machine between two sets of images; 0.5 is chance."""
    rows = torch.cat([images.cpu(), others.cpu()]).flatten(1)
    is_other = torch.arange(len(rows)) >= len(images)
    return float(cross_val_score(SVC(), rows.numpy(), is_other.numpy(), cv=5).mean())
