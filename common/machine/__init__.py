"""The machine: CPU settings and work over processes."""
