"""Latency measurement of both sides."""
