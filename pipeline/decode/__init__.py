"""Handing a dataset out: which pictures, how many layers of each, and in which form."""
