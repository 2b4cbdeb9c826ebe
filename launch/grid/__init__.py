"""What a sweep varies, and the tables of what that gave."""
