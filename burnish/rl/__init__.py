"""The mathematics of reinforcement learning: rewards to advantages, advantages to a loss.

It knows no network.
"""
