"""What a runner drives: learners, one iteration at a time."""
