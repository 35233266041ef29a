"""Tables, plots and a page from the folder of a sweep."""
