"""Settings of the deployment: options and task placement."""
