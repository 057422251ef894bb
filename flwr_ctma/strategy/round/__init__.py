"""One synchronous round: select nodes, inspect replies, aggregate them, report."""
