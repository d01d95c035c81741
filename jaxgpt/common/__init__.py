"""What all commands share: the command line, files, progress, several processes."""
