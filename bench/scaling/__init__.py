"""What being steered costs on several ranks: collectives per step, counted, and host time."""
