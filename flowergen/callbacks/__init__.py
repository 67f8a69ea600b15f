"""Observers of training: pictures, curves, checkpoints, provenance. They change no training maths."""
