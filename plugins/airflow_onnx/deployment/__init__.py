"""Settings of the deployment: options, task placement and pods."""
