"""Triggers that poll MLflow from the triggerer."""
