"""The commands. Each script parses its options and calls the pipeline."""
