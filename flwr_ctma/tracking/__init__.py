"""Records of a run: its folder, callbacks, the ledger of nodes, and checkpoints."""
