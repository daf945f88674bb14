"""PyTorch networks that no package has, with the key names of their published checkpoints."""
