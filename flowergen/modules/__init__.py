"""LightningModules: they know losses and networks, never Hydra."""
