"""Running a job on Ray: cluster, tasks, workers, progress, signals."""
