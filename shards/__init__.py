"""Sample to images to tar shards, and shards to batches of samples."""
