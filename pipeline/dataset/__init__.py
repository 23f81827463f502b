"""What a dataset is on a store: its rows, its files, its records and its manifests."""
