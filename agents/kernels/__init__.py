"""Compiled twins of what training spends its time on, and the one place that chooses."""
