"""What happens inside a detector, in numbers and in a picture that explains itself.

Each file is one question; its function of the same name reads saved detectors, looks at the images of a split, and writes a
JSON and PNGs into a folder. `snapshots.py` says which detectors are meant, `figures.py` how everything is drawn.
"""
