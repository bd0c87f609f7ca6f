"""What is done to one detector, pass by pass; `apply.py` runs them in order."""
