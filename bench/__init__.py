"""Measurements of this project on the reference model: `python -m bench`, each with its goal and its uncertainty."""
