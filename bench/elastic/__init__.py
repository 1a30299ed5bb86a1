"""A run that survives a rank's death: torchrun starts it again, DCP gives it back its state."""
