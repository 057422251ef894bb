"""Robust aggregation for apps of Flower's former API.

It protects apps with a strategy of `flwr.server.strategy` and `NumPyClient` as
`flwr_ctma.strategy.RobustStrategy` protects others: results are inspected as replies,
and the strategy inside sees the robust reply as a result.
"""

from flwr_ctma.legacy.robust import RobustStrategy

__all__ = ["RobustStrategy"]
