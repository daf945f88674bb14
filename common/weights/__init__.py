"""Weight files: what they say besides tensors, and which tensors another network takes."""
