"""Stores: where bytes lie, and how they are read and written whole."""
