"""Training and evaluation samples: image and label pairs, where data sets lie, the random stream."""
