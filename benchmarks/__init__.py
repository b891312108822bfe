"""Measurements; nothing here is imported by the product or run by the tests."""
