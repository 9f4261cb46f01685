"""Measurements of watching and backfilling, on real servers that each starts and stops itself."""
