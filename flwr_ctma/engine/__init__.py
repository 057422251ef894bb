"""The stack of client updates and the four primitives that rules need."""
