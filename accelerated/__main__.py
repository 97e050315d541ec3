"""The command line as a module: `python -m accelerated`."""

from accelerated.command_line.cli import main

if __name__ == "__main__":
    main()
