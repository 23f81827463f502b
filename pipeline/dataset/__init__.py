"""A dataset on a store: its rows, files, records and manifests."""
