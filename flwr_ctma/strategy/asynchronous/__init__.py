"""Aggregation at every arrival: nobody waits for the slowest client."""
