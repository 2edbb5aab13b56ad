"""Read requests of every provider into one form."""
