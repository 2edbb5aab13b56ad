"""Grade replies: by a reference, by a judge, by a program."""
