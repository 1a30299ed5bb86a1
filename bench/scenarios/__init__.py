"""The specification's §7 on real training: the knobs as it improves, stalls, breaks, shifts."""
