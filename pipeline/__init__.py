"""The plumbing: the only code that touches disk, settings, MLflow, devices and processes."""
