"""How likely each candidate is to succeed: one forward pass, then the fused kernel."""
