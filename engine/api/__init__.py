"""What the files and the words mean; standard library and numpy only."""
