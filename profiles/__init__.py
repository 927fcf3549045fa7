"""Data only: hardware, models, kernel tables and engine presets; see SOURCES.md."""
