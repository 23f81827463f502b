"""Training a model of any codec: loop, data, recipes, folders of runs."""
