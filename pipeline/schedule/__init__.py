"""What happens in which order: the items of a feed, and what stages report of them."""
