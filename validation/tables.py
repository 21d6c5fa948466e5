"""Names of the validated tables, in pipeline order."""

TABLES = ("raw", "items", "groups", "sample", "images", "exclusions", "shards", "weights", "profiles", "predictions")
