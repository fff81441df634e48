"""Stores under one contract suite; the only place that imports redis."""
