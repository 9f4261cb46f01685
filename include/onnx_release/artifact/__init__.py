"""The artifact folder: digests, the MLflow package around the model, the cache."""
