"""Shared by all commands: the command line, config files, files, progress, several processes."""
