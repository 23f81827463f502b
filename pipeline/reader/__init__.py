"""Read a dataset: whole columns, pictures by their keys, pages of a listing."""
