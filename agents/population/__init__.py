"""The members of an arm, in blocks that learn side by side."""
