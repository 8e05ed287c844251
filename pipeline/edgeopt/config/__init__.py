"""Reading of user input: YAML with positions, units, references to files and code; the plugin registry."""
