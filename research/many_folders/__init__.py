"""Training at full size on one GPU: packed data, many runs side by side, figures by folder."""
