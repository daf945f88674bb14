"""Experiment configs: YAML read strictly into dataclasses."""
