"""Picture files, smaller copies of pictures, and distances between them."""
