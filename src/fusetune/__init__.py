"""fusetune."""
