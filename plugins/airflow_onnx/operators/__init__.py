"""Operators of a release, one a file; each renders its arguments, makes one call and returns a record as a dict."""
