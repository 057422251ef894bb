"""Labelled images in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Examples"]


@dataclass(frozen=True)
class Examples:
    """Labelled images: (m, channels, height, width) in [-1, 1], and m class numbers.

    A row of features is an image of one channel and one row of pixels.
    """

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Examples":
        """Select some of the examples."""
        return Examples(self.images[index], self.labels[index], self.num_classes)

    def to(self, device: torch.device) -> "Examples":
        """Move the tensors to a device."""
        return Examples(
            self.images.to(device), self.labels.to(device), self.num_classes
        )
