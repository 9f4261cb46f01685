"""Retirement: deletion of old versions that no alias has, together with their objects."""
