"""Writes the reference pages from what they describe, whenever the site is built."""
