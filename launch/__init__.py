"""Turns a command line into running processes; imports `pipeline`, never the reverse."""
