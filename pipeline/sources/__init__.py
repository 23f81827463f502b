"""Inputs: tar shards and the samples in them."""
