"""A job on Ray: cluster, tasks, workers, progress and the reasons to stop."""
