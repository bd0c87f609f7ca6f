"""Quantized and trainable layers, and the arithmetic and operators that they are made of."""
