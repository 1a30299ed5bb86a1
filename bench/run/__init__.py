"""The runner: cells (a task, a method, a rate, a seed), two engines, and a file of rows."""
