"""The method on Python floats, an equation to a function: the readable twin of csrc/law.

A file here and the one of its name there have the same functions in the same order, on the same
`State` and `ControlNumbers` (`layout.py`): read the two side by side, or with diff.
"""
