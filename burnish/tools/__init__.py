"""The commands beside training: sample, check recipes, search for codes, measure models."""
