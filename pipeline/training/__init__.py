"""Training on object stores and on several machines, with the codec's own loop inside."""
