"""What `benchmarks.quality` is made of: protocols, runs, records, pooling, the page."""
