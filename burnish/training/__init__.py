"""The training loop and everything that a run does while it goes."""
