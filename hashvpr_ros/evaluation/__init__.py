"""Measures: recall, precision, latency, and the report that shows them."""
