"""A detector behind HTTP: photographs in, detections out, within limits of memory that hold whatever is sent."""
