"""Image features: encoded once, kept in checked shards, read in batches."""
