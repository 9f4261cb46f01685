"""MLflow: training runs, release inputs, the run log and the model registry."""
