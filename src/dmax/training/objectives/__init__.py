"""Training objectives, one file each: what an example hides, and which losses follow (SPEC section 5)."""
