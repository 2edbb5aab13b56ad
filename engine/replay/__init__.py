"""Past requests, routed anew: what other policies would have chosen, at what cost and quality."""
