"""Checking a dataset, repairing it, and removing garbage."""
