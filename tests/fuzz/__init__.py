"""Random damage to every kind of file that is read. `make fuzz` runs it at length."""
