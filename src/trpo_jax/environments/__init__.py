"""Any simulator behind one small protocol."""
