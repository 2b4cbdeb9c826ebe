"""Every rule and global backprop on the same networks, and the table of what they give."""
