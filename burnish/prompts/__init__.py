"""Prompt sources, and the words that are put before or behind their prompts."""
