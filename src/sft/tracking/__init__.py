"""MLflow: a journal on disk, and its sync to a tracking server."""
