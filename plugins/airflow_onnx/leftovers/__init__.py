"""Garbage collection: files and records that a crash left behind and that nothing names."""
