"""Checking a dataset, and putting it in order."""
