"""Training callbacks for pictures, curves, checkpoints and provenance. They do not change the training maths."""
