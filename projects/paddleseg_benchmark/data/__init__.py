"""Data sets of a config as paddleseg opens them, checked, and the batches of a training."""
