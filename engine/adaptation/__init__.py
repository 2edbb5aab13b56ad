"""Learn from recorded outcomes while serving: docs/explanation/adaptation.md."""
