"""Adapters that put any simulator behind one small protocol."""
