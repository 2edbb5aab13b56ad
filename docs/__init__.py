"""The documentation; its scripts are in reference/."""
