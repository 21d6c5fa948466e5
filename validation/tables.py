"""The tables that are checked, in the order of the stages."""

TABLES = ("raw", "items", "groups", "sample", "images", "shards", "weights", "profiles", "predictions")
