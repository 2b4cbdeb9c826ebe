"""Runs whose processes are killed, stopped and starved; each file is a command, too."""
