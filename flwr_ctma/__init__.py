"""Byzantine-robust federated learning for Flower.

The server aggregates with CTMA (Dahan & Levy, ICML 2024) over any base rule; the
clients run double-momentum SGD; attacks simulate Byzantine clients.
"""

from flwr_ctma.aggregators import parse_aggregator

__all__ = ["parse_aggregator"]
__version__ = "0.2.0"
