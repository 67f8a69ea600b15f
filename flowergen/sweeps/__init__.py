"""Sweeps: a launcher that starts each job in its own process, and a search with Optuna. Both are plugins of Hydra."""
