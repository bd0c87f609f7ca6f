"""Exported files, the engines that run them, what they cost, and predictions on photographs."""
