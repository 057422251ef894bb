"""Strategies that hold another strategy."""
