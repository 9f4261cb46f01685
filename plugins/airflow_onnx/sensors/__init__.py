"""Sensors that wait for training runs."""
