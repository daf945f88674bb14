"""PaddleSeg's model zoo: its networks, configs and losses, and what makes them train on Paddle 3."""
