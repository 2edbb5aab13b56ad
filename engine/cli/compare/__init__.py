"""`modelsat compare run`: ask several LLMs the same past requests, grade them, record the outcomes.

modelsat compare run --log FILE --candidates a,b,c --grader numeric --endpoints FILE.toml
"""

from engine.cli.compare.command import add_arguments

__all__ = ["add_arguments"]
