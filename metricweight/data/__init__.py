"""Pictures, their labels and splits, what is done to their pixels, and how batches are formed."""
