"""The connection type `mlflow`: hook, REST client, credentials."""
