"""The stream format: its parts, entropy coding, and the protection of choices."""
