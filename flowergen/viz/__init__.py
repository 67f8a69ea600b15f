"""Drawing: image files and HTML pages from tensors and tables."""
