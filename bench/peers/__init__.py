"""Other engines and pipelines, which bench.compare measures in turn with this one."""
