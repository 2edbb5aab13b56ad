"""The parts of marking: typography, reasoning sections, words of languages, choices."""
