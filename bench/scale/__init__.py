"""Cost of releases on many machines: docker-compose.yaml under load, and a model of larger deployments."""
