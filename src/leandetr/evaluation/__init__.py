"""Accuracy of any callable that predicts, by the field's own evaluation code."""
