"""A diffusion model as a policy: its schedule, its transitions, its sampling and its replay."""
