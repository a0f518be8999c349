"""For scripts that were written for other libraries: their names and calls on Burnish's loop."""
