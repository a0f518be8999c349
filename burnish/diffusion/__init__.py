"""A diffusion model as a policy: its noise schedule, its transitions, how it is sampled and
replayed.
"""
