"""Tests of frontier_mock.cli."""
