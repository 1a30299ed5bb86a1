"""`probe`: the learning rate for a training script as it is, by a range test of its own steps."""
