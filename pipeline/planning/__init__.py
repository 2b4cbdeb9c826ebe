"""What blocks cost, which stages and devices they go to, and how fast that will be. Pure."""
