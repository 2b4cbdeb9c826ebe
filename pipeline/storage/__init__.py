"""Files that survive crashes: checkpoints, lines, and the folder that is held open."""
