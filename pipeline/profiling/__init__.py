"""What a block costs on a device: measured."""
