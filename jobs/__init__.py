"""The commands: each script parses its options, calls the pipeline, and exits."""
