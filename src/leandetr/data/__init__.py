"""Photographs and their boxes: reading, checking, transforming, and a synthetic set."""
