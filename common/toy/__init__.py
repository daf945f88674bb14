"""The toy data set: how its images and labels are drawn, and written in the layouts of real data sets."""
