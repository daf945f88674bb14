"""Paddle networks for checkpoints that differ from the networks of the projects in a layer or two."""
