"""Training objectives, one file each: what an example hides, and which losses follow (algorithm.md#oput)."""
