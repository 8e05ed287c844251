"""Reading what people write: YAML with positions, units, references to code; the registry of plug-ins."""
