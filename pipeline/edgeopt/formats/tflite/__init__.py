"""TFLite files: reading, quantizing, editing, slimming."""
