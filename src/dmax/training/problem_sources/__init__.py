"""Sources of endless problems to train on, one file each: what is asked, and what the answer is."""
