"""Networks that the recipes build with ``factory: "models.<file>:<function>"``."""
