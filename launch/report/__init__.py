"""pipeline-report: what a run leaves, to look at: one HTML file that needs nothing else."""
