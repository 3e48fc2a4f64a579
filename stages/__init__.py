"""One thin script per stage of dvc.yaml: read settings, call, write."""
