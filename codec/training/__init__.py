"""Training models of any codec: loop, data, recipes, folders of runs."""
