"""Data sets, their training transforms, and where they lie."""
