"""The matrix of measured cells: which there are, how they are measured, tabulated and drawn; peers in PyTorch."""
