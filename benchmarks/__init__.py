"""Burnish against TRL's DDPOTrainer and against its own network alone. See README.md."""
