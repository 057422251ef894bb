"""Label flipping in any app: through the labels, or through the head of the model.

Training on permuted labels π(y) is the same as training on y with the classes of the
model's last layer permuted by π before, and back after: loss, gradients and every
optimiser that treats coordinates alike see the same numbers in another order. So a mod
can flip the labels of a ClientApp without access to its data.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from numpy.typing import NDArray

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = ["LabelFlip", "flip_labels"]

L = TypeVar("L")


def flip_labels(labels: L, num_classes: int) -> L:
    """Map each label y to (num_classes − 1) − y.

    For apps that poison their own data. `LabelFlip` needs no change to the app.

    Parameters
    ----------
    labels : ndarray, tensor or int
        Classes, 0 to num_classes − 1.
    num_classes : int
        Number of classes.

    Examples
    --------
    >>> flip_labels(np.array([0, 3, 9]), num_classes=10)
    array([9, 6, 0])
    """
    flipped: L = num_classes - 1 - labels  # type: ignore
    return flipped


@dataclass(frozen=True)
class LabelFlip(Attack, name="labelflip"):
    """Train honestly on the labels (classes − 1) − y.

    The mod reverses the order of the classes in the model's last layer before the
    client trains, and back after, which has the same effect. The app is not changed.

    Parameters
    ----------
    layer : str (default: "")
        Beginning of the names of the last layer's arrays, for example "head" ("-" and
        "_" are the same). If empty, the layer is found automatically.

    Raises
    ------
    ValueError
        In `train`, if no layer is recognised.

    Notes
    -----
    The last layer is the last two arrays, if they belong together and one is a vector
    with an entry for each class, the other a matrix with as many rows (PyTorch) or
    columns (Keras, Flax). Without a bias, it is a last matrix, with a row for each
    class. A single output is a binary logit, which changes its sign.

    Momentum that the app keeps from round to round stays in the reversed order. When a
    schedule starts or stops the attack, the momentum of the last layer is in the wrong
    order until it has decayed.

    References
    ----------
    Allen-Zhu et al., "Byzantine-Resilient Non-Convex Stochastic Gradient Descent",
    ICLR 2021; Karimireddy et al., "Learning from History for Byzantine Robust
    Optimization", ICML 2021.

    Examples
    --------
    The arrays of the last layer and the axis that counts classes:

    >>> shapes = {"conv.weight": (8, 1, 3, 3), "fc.weight": (10, 8), "fc.bias": (10,)}
    >>> LabelFlip().head(shapes)
    {'fc.weight': 0, 'fc.bias': 0}
    """

    layer: str = ""

    def head(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        """Return the arrays of the last layer, by name, with their axes of classes."""
        arrays = [name for name, shape in shapes.items() if shape]
        beginning = self.layer.replace("-", "_")
        last = [
            name for name in arrays if name.replace("-", "_").startswith(beginning)
        ][-2:]
        biases = [name for name in last if len(shapes[name]) == 1]
        kernels = [name for name in last if len(shapes[name]) > 1]
        if len(biases) == len(kernels) == 1 and _together(last, biases[0]):
            (bias,), (kernel,) = biases, kernels
            for axis in (0, len(shapes[kernel]) - 1):
                if shapes[kernel][axis] == shapes[bias][0]:
                    return {kernel: axis, bias: 0}
        if kernels and kernels[-1] == last[-1]:
            return {last[-1]: 0}
        raise parameter_error(
            "layer",
            "the beginning of the names of the last layer's arrays",
            self.layer,
            f"Their shapes must show the number of classes; the last arrays are "
            f"{ {name: shapes[name] for name in list(shapes)[-4:]} }.",
        )

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Train with the classes of the last layer in reverse order."""
        arrays = {
            key: array.numpy()
            for record in message.content.array_records.values()
            for key, array in record.items()
        }
        head = self.head({key: array.shape for key, array in arrays.items()})
        disguised = messages.replace(message, _flipped(message, head))
        reply = respond(disguised, context)
        if reply is None or not reply.has_content():
            return reply
        return messages.replace(reply, _flipped(reply, head))


def _together(names: list[str], bias: str) -> bool:
    """Return whether two arrays are of one layer, by name or, if unnamed, by order."""
    first, second = (name.rpartition(".")[0] for name in names)
    return first == second and (first != "" or names[1] == bias)


def _flipped(message: Message, head: dict[str, int]) -> dict[str, ArrayRecord]:
    return {
        name: ArrayRecord(
            {
                key: Array(_reverse(array.numpy(), head[key])) if key in head else array
                for key, array in record.items()
            }
        )
        for name, record in message.content.array_records.items()
    }


def _reverse(array: NDArray[Any], axis: int) -> NDArray[Any]:
    if array.shape[axis] == 1:
        return -array
    return np.ascontiguousarray(np.flip(array, axis))
