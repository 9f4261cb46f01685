"""Trained models: their formats, and how they are loaded and called."""
