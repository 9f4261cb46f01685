"""Training runs, release inputs, the release's record on the run, and the model registry in MLflow."""
