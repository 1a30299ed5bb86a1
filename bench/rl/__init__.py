"""Reinforcement learning: PPO on two of gymnasium's tasks, many runs side by side.

The algorithm has the shape and the defaults of CleanRL's single file (Huang et al. 2022, "CleanRL:
High-quality Single-file Implementations of Deep Reinforcement Learning Algorithms"), and none of
its code. ``python -m bench.rl`` is the study; docs/reinforcement-learning.md has what came of it.
"""
