"""Reading a dataset: whole columns, pictures by key, pages of a listing."""
