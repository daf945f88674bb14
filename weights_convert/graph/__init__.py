"""Any PyTorch network as readable Paddle code: exported graph in, `paddle.nn.Layer` and proof out."""
