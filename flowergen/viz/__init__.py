"""Tensors and tables in, picture files out."""
