"""A run from its first step to its last: the loop, what it writes, how it stops."""
