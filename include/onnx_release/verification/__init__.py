"""Verification of a released folder: its bytes, its record, and its outputs on this machine."""
