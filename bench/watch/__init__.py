"""Measurements of the watch and of backfills, on servers that each starts and stops."""
