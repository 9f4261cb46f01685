"""Faults, kills and hostile input on the real local stack, and the statements that must be true after them."""
