"""A rendered course with exact poses, for the demo and the tests."""
