"""Where and how programs run: devices, compilation, one training or many at once, several processes."""
