"""leandetr: train, distil, quantize, export and measure DETR-family object detectors."""
