"""Pictures of runs and data."""
