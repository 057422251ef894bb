"""One round: nodes are selected, replies inspected and aggregated, and reported."""
