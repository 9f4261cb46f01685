"""Hooks and what they need to speak to MLflow."""
