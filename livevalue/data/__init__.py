"""Data that ships with the package; see README.md beside it for source and licence."""
