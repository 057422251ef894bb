"""Data sets in the layout of the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from numpy.typing import NDArray


def write_dataset(folder: Path, data: Dataset) -> None:
    """Write the same examples for training and for tests."""
    (folder / "data").mkdir()
    for split in ("train", "test"):
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def write_images(
    folder: Path, image: str = "image", label: str = "label"
) -> NDArray[Any]:
    """Write 12 colour images of three classes, and return their pixels."""
    features = Features({image: Image(), label: ClassLabel(num_classes=3)})
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 10, 3), np.uint8)
    columns = {image: list(pixels), label: [0, 1, 2] * 4}
    write_dataset(folder, Dataset.from_dict(columns, features=features))
    return pixels
