"""What all commands share: the command line, config files, files, progress, several processes."""
