"""Low-bit training around its layers: backbones before it, what is logged in it, integers after it."""
