"""WHAT WE RUN ON."""
