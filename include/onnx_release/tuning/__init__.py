"""Other ways to run an exported model, each gated by limits of its own, all timed in one contest."""
