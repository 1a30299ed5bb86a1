"""One step of an optimizer in five stages; `round` is where to begin to read."""
