"""Flower's Grid in one process, on a virtual clock or in batches, for simulations."""

from flwr_ctma.simulation.batched import BatchedGrid
from flwr_ctma.simulation.clock import ArrivalGrid
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.simulation.wrapper import GridWrapper

__all__ = ["ArrivalGrid", "BatchedGrid", "GridWrapper", "InProcessGrid"]
