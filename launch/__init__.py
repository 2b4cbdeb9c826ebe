"""Turns a command line into running processes; imports `pipeline`, never the reverse."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is about to run a module of this package by its name
    from launch.entry import leave_current_folder

    leave_current_folder()
