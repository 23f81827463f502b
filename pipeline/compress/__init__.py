"""Compressing shards to data files of a dataset."""
