"""Procedural worlds: a scene rendered into every modality, paired."""
