"""Search for finished training runs, decisions about them, and the start of their releases."""
