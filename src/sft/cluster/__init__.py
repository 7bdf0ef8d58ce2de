"""Slurm: cluster files, jobs, and stages that run as a job."""
