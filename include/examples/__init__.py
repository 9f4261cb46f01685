"""Reference model, data and training of the demo, the benchmark and the tests."""
