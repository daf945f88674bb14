"""Run folders: how they are planned, written and read."""
