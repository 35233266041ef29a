"""A training on disk, and how it is shown."""
