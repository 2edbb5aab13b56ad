"""From base weights and outcomes to a merged Model-SAT checkpoint."""
