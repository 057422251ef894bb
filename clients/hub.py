"""Data sets on the Hugging Face Hub, and in local folders in its layout."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import (
    ClassLabel,
    Dataset,
    Image,
    List,
    disable_progress_bars,
    load_dataset,
)
from torch import Tensor

from clients.examples import Examples
from flwr_ctma.errors import parameter_error

__all__ = ["StoredExamples", "load"]

disable_progress_bars()


class StoredExamples:
    """Examples on the disk; each is decoded when it is first selected, and kept.

    Parameters
    ----------
    dataset : Dataset
        It has a column of images or of rows of features, and one of class labels.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._column, label = _columns(dataset)
        self._dataset = dataset.select_columns([self._column]).with_format("numpy")
        labels = dataset.select_columns([label]).with_format("numpy")[:][label]
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.num_classes: int = dataset.features[label].num_classes
        self._is_decoded = np.zeros(len(dataset), bool)
        self._decoded = np.empty(0)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Examples:
        """Return some of the examples."""
        rows = index.numpy()
        new = rows[~self._is_decoded[rows]]
        if new.size:
            values = np.asarray(self._dataset.select(new)[:][self._column])
            if not self._decoded.size:  # memory that is not written takes no space
                self._decoded = np.empty((len(self), *values.shape[1:]), values.dtype)
            self._check(values)
            self._decoded[new] = values
            self._is_decoded[new] = True
        images = self._scaled(self._decoded[rows])
        return Examples(images, self.labels[index], self.num_classes)

    def _check(self, values: "np.ndarray[Any, Any]") -> None:
        """Raise a ValueError for examples that NumPy would stretch or wrap to fit."""
        is_image = isinstance(self._dataset.features[self._column], Image)
        alike = (values.shape[1:], values.dtype) == (
            self._decoded.shape[1:],
            self._decoded.dtype,
        )
        if alike and (values.dtype == np.uint8 if is_image else values.dtype != object):
            return
        raise parameter_error(
            "dataset",
            "one of examples of one size, images with 8 bits in each channel",
            f"{self._column} of shape {values.shape[1:]} and {values.dtype}",
            "Convert its images to grey or RGB, and cut them to one size.",
        )

    def _scaled(self, values: "np.ndarray[Any, Any]") -> Tensor:
        if not isinstance(self._dataset.features[self._column], Image):
            return torch.from_numpy(values).float()[:, None, None, :]
        pixels = values[..., None] if values.ndim == 3 else values
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return images.contiguous()


def load(dataset: str) -> tuple[StoredExamples, StoredExamples]:
    """Return the examples for training and those for tests.

    Raises
    ------
    ValueError
        If there is no such data set, or a split or a column is missing.
    """
    try:
        splits = load_dataset(str(Path(dataset).expanduser()))
    except Exception as error:
        raise parameter_error(
            *("dataset", "one of digits, breast-cancer, or loadable by `datasets`"),
            *(dataset, f"{error}. Without a network, name a local folder."),
        ) from error
    if not {"train", "test"} <= set(splits):
        raise parameter_error(
            "dataset",
            f"one with the splits train and test, not {list(splits)}",
            dataset,
        )
    return StoredExamples(splits["train"]), StoredExamples(splits["test"])


def _columns(dataset: Dataset) -> tuple[str, str]:
    """Find the column of images or features and the labels, whatever their names."""
    kinds = {type(feature): name for name, feature in dataset.features.items()}
    inputs = kinds.get(Image, kinds.get(List))
    if inputs is None or ClassLabel not in kinds:
        raise parameter_error(
            "dataset",
            "one with a column of images, or of rows of features, and one of class "
            "labels",
            dict(dataset.features),
        )
    return inputs, kinds[ClassLabel]
