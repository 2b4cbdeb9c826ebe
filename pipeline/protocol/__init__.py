"""Messages, their bytes, and the life cycle that they follow. No sockets."""
