"""Which devices this machine has, and what a result was made on."""
