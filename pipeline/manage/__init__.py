"""Managing archives: describing them, merging them, deleting samples from them."""
