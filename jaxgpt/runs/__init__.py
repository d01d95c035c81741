"""A run on disk: checkpoints, records, and the folders of other tools."""
