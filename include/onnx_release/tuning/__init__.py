"""Tuning: build other variants of an exported model, test each, and time all in one race."""
