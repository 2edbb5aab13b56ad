"""Match instructions with the tasks of candidates' aptitude tests."""
