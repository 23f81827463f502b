"""What comes in: tar shards and the samples in them."""
