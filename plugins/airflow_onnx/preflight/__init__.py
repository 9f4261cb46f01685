"""Checks of a deployment: everything that a release needs, before the first one and before each export."""
