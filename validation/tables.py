"""Names of the validated tables, in pipeline order."""

TABLES = ("raw", "items", "groups", "sample", "images", "shards", "weights", "profiles", "predictions")
