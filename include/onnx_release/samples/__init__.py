"""Input samples for the reference and the candidate."""
