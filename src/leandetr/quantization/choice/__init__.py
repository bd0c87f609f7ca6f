"""Which layer gets what: errors of single layers, and the choices made by them."""
