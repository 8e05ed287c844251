"""Reading, writing and slimming TFLite files."""
