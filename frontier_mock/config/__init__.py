"""Scenario files, profiles and engine flags to frozen specs."""
