"""Training: binding modalities to the image space."""
