"""The commands beside training: sample images, check recipes, search for codes, measure models."""
