"""The demo, the comparisons and the study. Run from the repository root; not part of the wheel."""
