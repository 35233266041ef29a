"""What accelerator.py measures, and the process that measures it."""
