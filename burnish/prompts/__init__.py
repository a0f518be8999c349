"""Where prompts come from, and what is put before or behind them."""
