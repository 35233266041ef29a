"""Floor 4: any simulator behind one small protocol."""
