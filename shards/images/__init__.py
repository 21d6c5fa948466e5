"""Images on their way into shards: asked for, decoded, kept."""
