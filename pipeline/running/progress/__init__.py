"""What people and programs see of a job: live display, log, metrics, summary."""
