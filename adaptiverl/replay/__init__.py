"""``python -m adaptiverl replay FILE``: what the controller would have done on a recorded curve."""
