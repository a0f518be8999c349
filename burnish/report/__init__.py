"""What a run looks like: its page, its curves, its progress bar. Needs no torch."""
