"""What all projects share: metrics, labels, dataset lists, the toy data, run files. NumPy and OpenCV only."""
