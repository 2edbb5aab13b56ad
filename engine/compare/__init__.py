"""Compare candidates on past requests: ask all of them, grade the answers, record the outcomes."""
