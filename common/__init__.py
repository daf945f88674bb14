"""What all projects share: metrics, labels, dataset lists, the embedded data, run files. NumPy and OpenCV only."""
