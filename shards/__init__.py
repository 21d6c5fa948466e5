"""Fetch the images of a sample, write WebDataset shards, and read shards as batches."""
