"""Input samples for both sides."""
