"""Sockets: the only package with aiohttp servers."""
