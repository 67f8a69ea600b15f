"""Schedules, objectives, guidance and samplers: they meet through tensors alone, and each can be swapped."""
