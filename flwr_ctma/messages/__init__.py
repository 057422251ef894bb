"""Flower replies to rows and back: the schema that inspects a reply, and its arrays."""
