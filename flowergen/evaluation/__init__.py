"""What a trained model makes of pictures, and how good it is."""
