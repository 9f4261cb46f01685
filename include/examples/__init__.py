"""The reference model that the demo, the benchmark and the tests release, with its data and its training."""
