"""The `maskrcnn` command: parse arguments, call the library, print the results."""
