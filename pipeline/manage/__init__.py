"""Looking after archives: what they are, merging them, deleting samples from them."""
