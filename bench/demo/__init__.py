"""The demo: one small GPT on real text, three optimizers, one picture. ``python -m bench.demo``."""
