"""How far off the learning rate may be: every method from seven rates. See ``--help``."""
