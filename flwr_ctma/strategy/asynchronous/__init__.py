"""Asynchronous training: the server takes a step at every counted update."""
