"""The scenario library: YAML files that are runnable by name."""
