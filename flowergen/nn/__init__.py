"""Network modules, from tensors to tensors."""
