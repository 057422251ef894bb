"""Attacks that use the global models of earlier rounds."""

from dataclasses import dataclass
from math import cos, radians, sin
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from flwr_ctma.attacks.alie import largest_deviation
from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.errors import parameter_error

__all__ = ["ROP", "HybridSparse", "PoisonedFL"]


@dataclass(frozen=True)
class PoisonedFL(Omniscient, name="poisonedfl"):
    """All colluders push the model in one random direction, round after round.

    A sign vector s ∈ {−1, 1}^d is drawn once. In round t, with the last step of the
    global model g = w_t − w_{t−1} and the last lie u,

        x = c·‖g‖·(v⊙s)/‖v‖,    v = abs(g − u·‖g‖/‖u‖)

    v estimates the size of the honest updates in each coordinate: the step minus what
    the lie contributed. Every `period` rounds the attackers test whether the model
    moved with s: if fewer coordinates of w_t − w_{t−period} have the sign of s than
    chance alone reaches with probability 0.99, the lies were filtered out, and c
    shrinks to 0.7·c (not below 0.5). In the first round they are honest: there is no
    step yet. They need to know nothing of the honest updates.

    Parameters
    ----------
    scale : float (default: 8.0)
        c at the start. Larger than 0.
    period : int (default: 50)
        Number of rounds between two tests. At least 1.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or the global model is not known.

    Notes
    -----
    Checked against the authors' code. Unlike there, coordinates of the model that did
    not move in a period count as not aligned.

    References
    ----------
    Xie, Fang and Gong, "Model Poisoning Attacks to Federated Learning via Multi-Round
    Consistency", CVPR 2025 (arXiv 2404.15611), Algorithm 1.

    Examples
    --------
    The model went from (0, 0) to (3, −4), so ‖g‖ = 5 and v = (3, 4):

    >>> memory = {}
    >>> def act(model):
    ...     return PoisonedFL(scale=2.0).collude(
    ...         Knowledge(
    ...             honest=np.ones((3, 2)),
    ...             malicious=np.ones((1, 2)),
    ...             rng=np.random.default_rng(0),
    ...             model=np.array(model),
    ...             memory=memory,
    ...         )
    ...     )
    >>> act([0.0, 0.0])
    array([[1., 1.]])
    >>> abs(act([3.0, -4.0]))
    array([[6., 8.]])
    """

    needs_malicious: ClassVar[bool] = True

    scale: float = 8.0
    period: int = 50

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.scale > 0:
            raise parameter_error("scale", "larger than 0", self.scale)
        if self.period < 1:
            raise parameter_error("period", "at least 1", self.period)

    def craft(self, known: Knowledge) -> Rows:
        """c·‖g‖·(v⊙s)/‖v‖."""
        model, memory = _model(self, known), known.recall(str(self))
        if "model" not in memory:
            signs = 2 * known.rng.integers(0, 2, model.size, np.int8) - 1
            memory.update(
                {"signs": signs, "scale": self.scale, "rounds": 0},
                model=model,
                period_start=model,
                lie=np.zeros_like(model),
            )
            return known.malicious
        memory["rounds"] += 1
        if memory["rounds"] % self.period == 0:
            self._adapt(memory, model)
        step, lie = model - memory["model"], memory["lie"]
        size, length = np.linalg.norm(step), np.linalg.norm(lie)
        v = np.abs(step - lie * (size / length)) if length else np.abs(step)
        row: Rows = memory["scale"] * size * v * memory["signs"]
        row /= np.linalg.norm(v) or 1.0
        memory.update(model=model, lie=row)
        return row

    def _adapt(self, memory: dict[str, Any], model: Rows) -> None:
        """Shrink c if the model did not follow the signs."""
        aligned = np.sign(model - memory["period_start"]) == memory["signs"]
        d = model.size
        # The 0.99 quantile of a binomial distribution, by its normal approximation.
        chance = d / 2 + NormalDist().inv_cdf(0.99) * np.sqrt(d) / 2
        if aligned.sum() < chance and 0.7 * memory["scale"] >= 0.5:
            memory["scale"] *= 0.7
        memory["period_start"] = model


@dataclass(frozen=True)
class ROP(Omniscient, name="rop"):
    """Relocated orthogonal perturbation: a lie beside the last aggregate.

    With the last step of the global model m = w_t − w_{t−1} and the honest mean μ,

        l = π·m + (1 − π)·μ           where the lie is placed
        r = λ·m + (1 − λ)·μ           what it is orthogonal to
        q = 1 − r·⟨1, r⟩/‖r‖²          the vector of ones, without its part along r
        x = l + z·‖σ‖·(sin θ·q/‖q‖ + cos θ·r/‖r‖)

    Centred clipping starts from the last aggregate, so it does not clip a lie beside
    it; and momentum keeps a perturbation that is always on the same side.

    Parameters
    ----------
    z : float (default: 1.0)
        Size of the perturbation, in units of the honest spread ‖σ‖. Larger than 0.
    angle : float (default: 90.0)
        θ, in degrees; 180 points against r.
    relocation : float (default: 1.0)
        π, in [0, 1].
    reference : float (default: 0.9)
        λ, in [0, 1].

    Raises
    ------
    ValueError
        If a parameter is out of its range, or the global model is not known.

    Notes
    -----
    Checked against the authors' code, with one difference: there z is a length of its
    own, in units of the clipping radius. In the first round the last step is 0, and r
    is μ.

    References
    ----------
    Özfatura, Özfatura, Küpçü and Gündüz, "Byzantines Can Also Learn From History: Fall
    of Centered Clipping in Federated Learning", IEEE TIFS 2024 (arXiv 2208.09894).

    Examples
    --------
    In the first round m = 0: beside 0, and orthogonal to μ = (2, 0), with ‖σ‖ = 1.

    >>> attack = ROP()
    >>> known = Knowledge(
    ...     honest=np.array([[2.0, 1.0], [2.0, -1.0]]),
    ...     malicious=np.zeros((1, 2)),
    ...     rng=np.random.default_rng(0),
    ...     model=np.zeros(2),
    ... )
    >>> attack.collude(known).round(12)
    array([[0., 1.]])
    """

    z: float = 1.0
    angle: float = 90.0
    relocation: float = 1.0
    reference: float = 0.9

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.z > 0:
            raise parameter_error("z", "larger than 0", self.z)
        for name in ("relocation", "reference"):
            if not 0 <= getattr(self, name) <= 1:
                raise parameter_error(name, "in [0, 1]", getattr(self, name))

    def craft(self, known: Knowledge) -> Rows:
        """Return l + z·‖σ‖·(sin θ·q/‖q‖ + cos θ·r/‖r‖)."""
        model, memory = _model(self, known), known.recall(str(self))
        mean = known.mean.astype(np.float64)
        last = model - memory.get("model", model)
        share = self.reference if "model" in memory else 0.0
        memory["model"] = model
        reference = share * last + (1 - share) * mean
        along = _unit(reference)
        ones = np.ones(len(mean))
        across = _unit(ones - along * (ones @ along))
        turned = sin(radians(self.angle)) * across + cos(radians(self.angle)) * along
        place = self.relocation * last + (1 - self.relocation) * mean
        row: Rows = place + self.z * known.spread * turned
        return row


@dataclass(frozen=True)
class HybridSparse(Omniscient, name="sparse"):
    """ALIE with a larger deviation in the few coordinates that matter most.

    All colluders send

        μ − σ⊙(a·m + z·(1 − m))

    with a mask m of the coordinates with the largest saliency `|w_j·μ_j|`, w the global
    model. The mask is chosen in the first round of the attack and kept. The large
    deviation is sparse, so distances hardly show it; the small one is everywhere.

    Parameters
    ----------
    scale : float (default: 1.5)
        a, the deviation in the mask, in standard deviations.
    z : float | None (default: None)
        The deviation elsewhere; `largest_deviation(n, f)`, that of ALIE, if None.
    share : float (default: 0.005)
        Share of the coordinates in the mask, in [0, 1].

    Raises
    ------
    ValueError
        If share is not in [0, 1], or the global model is not known.

    Notes
    -----
    The row is that of the authors' code, as are the defaults. Their masks come from
    pruning methods that need data, such as FORCE. The saliency here,
    `|weight · gradient|`, is that of SNIP (Lee et al., ICLR 2019), with the honest mean
    in place of the gradient, so that the attack works for any app.

    References
    ----------
    Özfatura, Özfatura, Küpçü and Gündüz, "Aggressive or Imperceptible, or Both: Network
    Pruning Assisted Hybrid Byzantines in Federated Learning", arXiv 2404.06230, 2024.

    Examples
    --------
    μ = (2, 2), σ = (1, 1); the second coordinate has the larger weight:

    >>> known = Knowledge(
    ...     honest=np.array([[1.0, 1.0], [3.0, 3.0]]),
    ...     malicious=np.zeros((1, 2)),
    ...     rng=np.random.default_rng(0),
    ...     model=np.array([0.1, -5.0]),
    ... )
    >>> HybridSparse(scale=4.0, z=0.5, share=0.5).collude(known)
    array([[ 1.5, -2. ]])
    """

    scale: float = 1.5
    z: float | None = None
    share: float = 0.005

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise parameter_error("share", "in [0, 1]", self.share)

    def craft(self, known: Knowledge) -> Rows:
        """μ − σ⊙(a·m + z·(1 − m))."""
        memory = known.recall(str(self))
        if "mask" not in memory:
            saliency = np.abs(_model(self, known) * known.mean)
            count = round(self.share * saliency.size)
            memory["mask"] = np.argsort(saliency, kind="stable")[::-1][:count].copy()
        z = self.z
        if z is None:
            n = float(known.weights.sum())
            z = largest_deviation(n, n - float(known.honest_weights.sum()))
        deviation = z * known.std
        deviation[memory["mask"]] = self.scale * known.std[memory["mask"]]
        return known.mean - deviation


def _model(attack: Omniscient, known: Knowledge) -> Rows:
    if known.model is None:
        raise parameter_error(
            "attack",
            "one that does not use the global model",
            str(attack),
            "AttackedStrategy and AttackedGrid give it; in a call of your own, set "
            "`Knowledge(…, model=…)` and `attack.collude(known)`.",
        )
    return known.model


def _unit(vector: Rows) -> Rows:
    length = float(np.linalg.norm(vector))
    unit: Rows = vector / length if length else vector
    return unit
