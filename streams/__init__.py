"""Streams of samples for supervised learners."""
