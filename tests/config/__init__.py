"""Tests of frontier_mock.config."""
