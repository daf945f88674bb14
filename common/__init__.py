"""What all projects share: metrics, labels, dataset lists, the embedded data set and run files. NumPy and OpenCV only."""
