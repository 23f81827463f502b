"""Compressing: tar shards in, data files of a dataset out."""
