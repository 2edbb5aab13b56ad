"""Files of candidates that people write: their forms, tasks by name, published figures."""
