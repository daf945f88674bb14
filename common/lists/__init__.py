"""Data set lists: found in a layout, written, read, checked and converted."""
