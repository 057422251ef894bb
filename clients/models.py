"""The networks of the app, by the name that the run-config gives."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from clients.config import RunConfig
from clients.task import Examples
from flwr_ctma.errors import parameter_error

__all__ = ["build_model"]

_WIDTH = 32  # of the transformer's tokens
_HIDDEN = 64  # units of the hidden layer of `mlp`


def build_model(like: Examples, config: RunConfig) -> nn.Module:
    """Build a network for images of this shape.

    The same seed gives the same initial weights, whatever ran before.

    Raises
    ------
    ValueError
        For a network of images where the examples are rows of features.
    """
    _, channels, height, width = like.images.shape
    if config.model != "mlp" and min(height, width) < 4:
        raise parameter_error(
            "model",
            f"mlp for the examples of {config.dataset}, which have {height} × {width} "
            "values",
            config.model,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _MODELS[config.model](channels, height, width, like.num_classes)


def _mlp(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, num_classes),
    )


def _small(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    layers = [*_small_layer(channels, 16), *_small_layer(16, 32)]
    return nn.Sequential(*layers, nn.Flatten(), _last(height, width, num_classes))


def _paper(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    layers = [*_paper_layer(channels, 16), *_paper_layer(16, 32)]
    return nn.Sequential(*layers, nn.Flatten(), _last(height, width, num_classes))


def _last(height: int, width: int, num_classes: int) -> nn.Module:
    return nn.Linear(32 * (height // 4) * (width // 4), num_classes)


def _small_layer(inside: int, outside: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(inside, outside, kernel_size=3, padding=1)
    yield nn.MaxPool2d(2)  # before ReLU: the same numbers, a quarter of the work
    yield nn.ReLU()


def _paper_layer(inside: int, outside: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(inside, outside, kernel_size=5, padding=2)
    yield nn.BatchNorm2d(outside)
    yield nn.MaxPool2d(2)
    yield nn.ReLU()


class _Transformer(nn.Module):
    """A vision transformer of one block: the patches of a 4 × 4 grid are its tokens.

    The last layer reads all tokens, not their mean: plain SGD learns it in few steps.

    References
    ----------
    Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image
    Recognition at Scale", ICLR 2021.
    """

    def __init__(
        self, channels: int, height: int, width: int, num_classes: int
    ) -> None:
        super().__init__()
        patch = (height // 4, width // 4)
        tokens = (height // patch[0]) * (width // patch[1])
        self.embed = nn.Conv2d(channels, _WIDTH, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, _WIDTH))
        # No dropout: clients of a batch would draw other numbers than one by one.
        self.block = nn.TransformerEncoderLayer(
            _WIDTH,
            nhead=4,
            dim_feedforward=2 * _WIDTH,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(tokens * _WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        tokens = self.embed(images).flatten(2).mT + self.position
        logits: Tensor = self.head(self.norm(self.block(tokens)).flatten(1))
        return logits


_MODELS: Mapping[str, Callable[[int, int, int, int], nn.Module]] = {
    "mlp": _mlp,
    "small": _small,
    "paper": _paper,
    "transformer": _Transformer,
}
