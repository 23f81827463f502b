"""Stores: file systems by URL, from which files are read and to which whole files are written."""
