"""Checks of an artifact: static checks and a smoke test."""
