"""Shows a job to people and programs: live display, log, metrics, summary."""
