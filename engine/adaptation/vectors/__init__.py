"""Get embedding and log-odds of instructions whose decision this server does not remember."""
