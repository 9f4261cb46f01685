"""Parity and latency of one artifact."""
