"""Sampling, reconstruction and evaluation of trained models."""
