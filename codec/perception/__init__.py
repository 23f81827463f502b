"""Distances closer to what people see than squared error is: to train by, and to judge by."""
