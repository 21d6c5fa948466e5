"""A rehearsal of the paper's run on a synthetic twin of its data; see `benchmarks.rehearsal.__main__`."""
