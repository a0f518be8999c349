"""The view of a run: its HTML page, its charts, its progress bar. Needs no torch."""
