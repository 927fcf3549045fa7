"""A fold over events: metrics, tables, result JSON, HTML."""
