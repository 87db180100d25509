"""Weights that others trained: the files they come in, and their names."""
