"""Model files: where they are, how they are named, checked, saved and loaded."""
