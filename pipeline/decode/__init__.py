"""Decoding a dataset: which pictures, how many layers of each, and in which form."""
