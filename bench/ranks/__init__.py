"""What torchrun starts: a run that survives a rank's death, and what being steered costs there."""
