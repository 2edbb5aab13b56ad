"""Generated from proto/ by `python -m engine.pb.generate`; never edited by hand."""
