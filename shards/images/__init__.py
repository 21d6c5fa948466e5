"""Fetch, decode and store the images that go into shards."""
