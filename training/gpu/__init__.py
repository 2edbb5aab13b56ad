"""Training at full size on one GPU: packed data, many runs beside each other, figures by folder."""
